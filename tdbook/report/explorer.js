// Moves the explorer of explorer.html.j2: in a report, which allows this script by its hash and
// holds some of the texts, and in JupyterLab, where the kernel gives all of them. Everything that
// can be shown was counted and put into words by widgets.py; here it is looked up.

const hardSetNumber = new Intl.NumberFormat("en").format;  // made once: it is slow to make

function hardSetNumbers(section) {
  return JSON.parse(section.querySelector("script").textContent);
}

// Makes the sliders and switches of a section work. `at` is [slider, its position, junk left out,
// number of the clip]; moved(at, view, stop) is told of it, at first and after every move.
function hardSetSliders(section, at, moved) {
  const {views} = hardSetNumbers(section);
  const all = selector => [...section.querySelectorAll(selector)];
  const one = selector => section.querySelector(selector);
  const percent = (a, b) => b ? `${(100 * a / b).toFixed(1)}%` : "–";
  const words = one("output"), lost = one(".lost"), pictures = all(".picture");
  const inputs = all("input[type=range]"), switches = all(".finer input, .finer select");
  const names = ["junk", "clip"];
  const rects = all("rect").map(rect => [rect, +rect.dataset.difficulty]);
  const lines = all(".line").map(path => [path, +path.dataset.low, +path.dataset.nat]);
  const rows = all("tbody tr").map(row => ({
    text: row.cells[1].firstChild, share: row.cells[2].firstChild.firstChild,
    bar: row.querySelector("i").style, group: +row.dataset.group,
  }));
  const folds = all("details").map(fold => [fold.querySelector("summary span"),
    [...fold.querySelectorAll("tbody tr")].map(row => [+row.dataset.group, row.cells[0].textContent])]);
  for (const {groups} of views.flat())  // of each stop, all windows at or above it
    for (let stop = groups.length - 2; stop >= 0; stop--)
      groups[stop] = groups[stop].map((count, g) => count + groups[stop + 1][g]);

  const show = () => {
    const [slider, position, junk, clip] = at, view = views[junk][clip];
    const stop = view[slider][position], threshold = view.stops[stop], hard = view.groups[stop];
    words.textContent = view.words[stop];
    lost.textContent = percent(view.lost[stop], 1);
    for (const input of inputs) {
      input.max = view[input.name].length - 1;
      input.value = input.name === slider ? position : view.near[input.name][stop];
      input.setAttribute("aria-valuetext", words.textContent);
      input.nextElementSibling.textContent = input.name === "share"
        ? percent(view.left - view.line[stop], view.windows) : threshold.toFixed(4);
    }
    pictures.forEach((picture, i) => picture.hidden = i !== +junk);
    for (const [rect, difficulty] of rects)
      rect.setAttribute("class", difficulty > view.cap ? "out" : difficulty >= threshold ? "hard" : "");
    for (const [path, low, nat] of lines)
      path.setAttribute("transform", `translate(${(threshold - low) * nat})`);
    for (const {text, share, bar, group} of rows) {
      text.data = `${hardSetNumber(hard[group])} of ${hardSetNumber(view.all[group])}`;
      share.data = percent(hard[group], view.all[group]);
      bar.width = view.all[group] ? share.data : 0;
    }
    for (const [span, groups] of folds) {
      const order = groups.filter(([g]) => view.all[g])
        .map(([g, name]) => [hard[g] / view.all[g], name]).sort((a, b) => a[0] - b[0]);
      span.textContent = order.length ? ": " + [order[0], order.at(-1)]
        .map(([share, name]) => `${percent(share, 1)} (${name})`).join(" to ") : "";
    }
    switches.forEach(el => el.type === "checkbox" ? el.checked = junk
      : el.value = at[2 + names.indexOf(el.name)]);
    moved(at, view, stop);
  };
  const turn = (i, value) => show(at = at.map((old, j) => j === i ? value : old));
  // JupyterLab leaves the arrows to what has this attribute, but would no longer save on Ctrl+S
  window.addEventListener("keydown", ({target, ctrlKey, metaKey}) => section.contains(target)
    && target.toggleAttribute("data-lm-suppress-shortcuts", !ctrlKey && !metaKey), true);
  for (const el of all(".slider, .presets, .finer")) el.hidden = false;
  const slide = (name, position) => show(at = [name, position, ...at.slice(2)]);
  for (const input of inputs)
    input.addEventListener("input", () => slide(input.name, +input.value));
  for (const el of switches) el.addEventListener("change", () =>
    turn(2 + names.indexOf(el.name), +(el.type === "checkbox" ? el.checked : el.value)));
  for (const button of all(".presets button"))
    button.addEventListener("click", () => slide("share", 2 * button.dataset.share - 1));
  show();
}

// Puts three texts on each side of the line, card by card, as long as they are `current`: one may
// have thousands of coloured pieces, and a move that comes meanwhile must not wait for six of them.
function hardSetTexts(section, above, below, title, current = () => true, later = go => go()) {
  const box = section.querySelector(".texts"), side = [0, 1, 2];
  if (!box.querySelector(".card"))
    box.innerHTML = `<p><b></b></p>${side.map(() => '<div class="card"></div>').join("")}`.repeat(2);
  box.querySelectorAll(":scope > p > b").forEach((b, i) => b.textContent = title(["above", "below"][i]));
  const slots = box.querySelectorAll(":scope > .card");
  const cards = [above, below].flatMap(texts => side.map(i => texts[i] ?? ""));
  const fill = i => {
    if (!current()) return;
    if (i === cards.length) return box.ariaBusy = "false";
    if (slots[i].shown === cards[i]) return fill(i + 1);
    slots[i].innerHTML = slots[i].shown = cards[i];
    later(() => fill(i + 1));
  };
  later(() => fill(0));
}

// For widgets.Explorer: texts are asked for when the line has rested, a choice is kept on a click.
function hardSetInJupyter({model, el}) {
  el.innerHTML = model.get("html");
  const section = el.querySelector("section"), texts = section.querySelector(".texts");
  const button = section.querySelector(".keep button"), done = button.nextElementSibling;
  let at = model.get("at"), rest;
  section.dataset.ready = "yes";
  const ask = () => {
    clearTimeout(rest);
    model.set("at", at);
    model.save_changes();
  };
  const answer = () => {
    const near = model.get("near");
    const current = () => String(near.at) === String(at);  // or the line has moved on
    if (current()) hardSetTexts(section, near.above, near.below, side => `Just ${side} the line`,
      current, go => (window.requestIdleCallback ?? setTimeout)(go, {timeout: 300}));
  };
  const report = () => { done.textContent = model.get("done"); };
  hardSetSliders(section, at, (now, view, stop) => {
    at = now;
    button.disabled = view.line[stop] === view.left;
    clearTimeout(rest);
    if (String(at) === String(model.get("at"))) return answer();
    done.textContent = "";  // it was said of another line
    texts.ariaBusy = "true";
    rest = setTimeout(ask, 150);
  });
  button.parentElement.hidden = false;
  button.addEventListener("click", () => {
    ask();
    model.send(at);
  });
  model.on("change:near", answer);
  model.on("change:done", report);
  report();
}

for (const section of document.querySelectorAll(".explorer:not([data-ready])")) {
  section.dataset.ready = "yes";
  const {texts, at} = hardSetNumbers(section);
  hardSetSliders(section, at, ([, , junk], {line, left}, stop) => {
    const from = line[stop], place = ([places]) => places[junk];
    const here = texts.filter(text => place(text) >= 0 && place(text) < left);
    const over = here.filter(text => place(text) >= from).slice(0, 3);
    const under = here.filter(text => place(text) < from).slice(-3).reverse();
    const next = over.every((text, i) => place(text) === from + i)
      && under.every((text, i) => place(text) === from - 1 - i);
    const cards = side => side.map(([, card]) => card);
    hardSetTexts(section, cards(over), cards(under), side => next ? `Just ${side} the line`
      : `${side} the line, the nearest of the ${texts.length} texts in this report`);
  });
}
