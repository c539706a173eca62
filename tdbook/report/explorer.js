// Moves the explorer of explorer.html.j2: in a report, which allows this script by its hash and
// holds some of the texts, and in JupyterLab, where the kernel gives all of them.

// Makes the sliders and switches of a section work. `at` is [slider, its stop, junk left out, and
// the numbers of clip, easy and token_share among their options]; moved(at, line) is told of it, at
// first and after every move: how many windows lie `above` the line, `out` of them dropped, and how
// many of them are left to be chosen.
const hardSetNumber = new Intl.NumberFormat("en").format;  // made once: it is slow to make

function hardSetSliders(section, at, moved) {
  const numbers = hardSetNumbers(section), {modes, options, presets} = numbers;
  const all = selector => [...section.querySelectorAll(selector)], one = s => section.querySelector(s);
  const number = hardSetNumber, round = x => x % 1 === .5 ? 2 * Math.round(x / 2) : Math.round(x);
  const percent = (a, b) => {  // both round to the even one where it is a tie, as Python does
    const x = 100 * a / b;
    return b ? `${(x * 4 % 1 ? x : round(10 * x) / 10).toFixed(1)}%` : "–";
  };
  const said = one("output"), svgs = all("svg"), held = one(".pictures b");
  const inputs = all("input[type=range]"), switches = all(".finer input, .finer select");
  const lines = all("svg .line"), rows = all("tbody tr").map(row => ({
    told: row.cells[1].firstChild, share: row.cells[2].firstChild.firstChild,
    bar: row.querySelector("i").style, group: +row.dataset.group,
  }));
  const folds = all("details").map(fold => [fold.querySelector("summary span"),
    [...fold.querySelectorAll("tbody tr")].map(row => [+row.dataset.group, row.cells[0].textContent])]);
  const names = ["junk", "clip", "easy_share", "token_share"];
  for (const mode of modes) {  // of each line, all that came in up to there
    let sum = mode.groups[0].map(() => 0);
    mode.above = mode.groups.map(row => sum = sum.map((x, i) => x + row[i]));
    mode.every = sum;
  }
  let drawn, rects;  // of which mode; [element, difficulty, class] of each bar and cell
  const stops = ([slider, , junk, clip]) =>
    slider === "share" ? modes[junk].share[clip] : modes[junk].threshold;
  const nearest = (list, far) => {
    let best = 0;
    list.forEach((stop, i) => { if (far(stop) < far(list[best])) best = i; });
    return best;
  };
  const draw = mode => {
    rects = [];
    mode.pictures.forEach((picture, i) => {
      svgs[i].querySelector("g").innerHTML = picture.rects.map(([x, y, height, ink]) =>
        `<rect x="${x}" y="${y}" width="1" height="${height}" opacity="${ink}"/>`).join("");
      svgs[i].querySelectorAll("rect").forEach((rect, j) =>
        rects.push([rect, picture.rects[j][4], ""]));
      if (picture.curve) svgs[i].querySelector(".curve").setAttribute("d", picture.curve);
      [...svgs[i].nextElementSibling.querySelectorAll("span")].forEach((span, j) =>
        span.textContent = picture.below[j]);
      lines[i].setAttribute("d", picture.line);
    });
    drawn = mode;
  };
  const show = () => {
    const [slider, stop, junk, clip, easy, tokens] = at, mode = modes[junk], m = mode.windows;
    const [threshold, line] = stops(at)[stop], drop = mode.out[clip], cap = mode.cap[clip];
    const above = mode.counts[line], out = mode.counts[drop], count = Math.max(0, above - out);
    const [share, token] = [options.easy_share[easy], options.token_share[tokens]];
    const added = Math.min(round(share * count), m - out - count);
    const tenth = x => +(100 * x).toPrecision(6);
    said.textContent = `${number(count)} of ${number(m)} ${numbers.of} (${percent(count, m)}) are `
      + `at least ${threshold} nats harder for the student`
      + (junk ? `; ${number(modes[0].windows - m)} junk windows are left out` : "")
      + (clip && options.clip[clip] ? `; the hardest ${tenth(options.clip[clip])}%, ${number(out)} `
        + "windows, are dropped as noise" : "")
      + (share ? `; ${number(added)} easier windows are mixed in` : "")
      + (token < 1 ? `; the hardest ${tenth(token)}% of their tokens count` : "");
    for (const input of inputs) {
      const own = stops([input.name, 0, junk, clip]);
      input.max = own.length - 1;
      // the slider that was moved keeps its stop, or its keys would be stuck between two windows
      input.value = input.name === slider ? stop : nearest(own, input.name === "share"
        ? s => Math.abs(mode.counts[s[1]] - above) : s => Math.abs(s[0] - threshold));
      input.setAttribute("aria-valuetext", said.textContent);
      input.nextElementSibling.textContent =
        input.name === "share" ? percent(count, m) : threshold.toFixed(4);
    }
    if (drawn !== mode) draw(mode);
    for (const rect of rects) {
      const kind = rect[1] > cap ? "out" : rect[1] >= threshold ? "hard" : "";
      if (kind !== rect[2]) rect[0].setAttribute("class", rect[2] = kind);
    }
    mode.pictures.forEach(({curve, zero, nat}, i) => {
      const [x, y] = curve ? [above / m, 0] : zero.map((z, axis) => z + threshold * nat[axis]);
      lines[i].setAttribute("transform", `translate(${x} ${y})`);
    });
    held.textContent = `They hold ${percent(Math.max(0, mode.lost[line] - mode.lost[drop]), 1)} of `
      + "all that was lost";
    const hard = mode.above[line].map((x, i) => Math.max(0, x - mode.above[drop][i]));
    for (const {told, share, bar, group} of rows) {
      told.data = `${number(hard[group])} of ${number(mode.every[group])}`;
      share.data = percent(hard[group], mode.every[group]);
      bar.width = mode.every[group] ? share.data : 0;
    }
    for (const [span, groups] of folds) {
      const order = groups.filter(([g]) => mode.every[g]).map(([g, name]) =>
        [hard[g] / mode.every[g], name]).sort((a, b) => a[0] - b[0]);
      const [low, high] = [order[0], order.at(-1)];
      span.textContent = order.length
        ? `: ${percent(low[0], 1)} (${low[1]}) to ${percent(high[0], 1)} (${high[1]})` : "";
    }
    switches.forEach(el => el.type === "checkbox" ? el.checked = junk
      : el.value = at[2 + names.indexOf(el.name)]);
    moved(at, {above, out, left: m - out, count});
  };
  // A switch keeps what the slider moved last stands for: the threshold, or the share.
  const switched = (i, value) => {
    const now = [...at], [slider, stop, junk, clip] = at;
    now[i] = value;
    if (slider === "share") {
      const [mode, to] = [modes[junk], modes[now[2]]], half = mode.steps[clip].indexOf(stop);
      const part = m => s => (m.counts[s[1]] - m.counts[m.out[m === to ? now[3] : clip]]) / m.windows;
      const was = part(mode)(stops(at)[stop]);
      now[1] = half >= 0 ? to.steps[now[3]][half]
        : nearest(stops(now), s => Math.abs(part(to)(s) - was));
    }
    show(at = now);
  };
  // JupyterLab leaves the arrows to what has this attribute, but would no longer save on Ctrl+S
  window.addEventListener("keydown", ({target, ctrlKey, metaKey}) => section.contains(target)
    && target.toggleAttribute("data-lm-suppress-shortcuts", !ctrlKey && !metaKey), true);
  for (const el of all(".slider, .presets, .finer")) el.hidden = false;
  for (const input of inputs)
    input.addEventListener("input", () => show(at = [input.name, +input.value, ...at.slice(2)]));
  for (const el of switches)
    el.addEventListener("change", () => switched(2 + names.indexOf(el.name), +(el.type === "checkbox"
      ? el.checked : el.value)));
  for (const button of all(".presets button")) button.addEventListener("click", () =>
    show(at = ["share", modes[at[2]].steps[at[3]][presets[button.textContent]], ...at.slice(2)]));
  show();
}

function hardSetNumbers(section) {
  return JSON.parse(section.querySelector("script").textContent);
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
  hardSetSliders(section, at, (now, {count}) => {
    at = now;
    button.disabled = count === 0;
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
  const {modes, texts, at} = hardSetNumbers(section);
  hardSetSliders(section, at, ([, , junk], {above, out}) => {
    const m = modes[junk].windows, line = m - above, place = ([places]) => places[junk];
    const here = texts.filter(text => place(text) >= 0 && place(text) < m - out);
    const over = here.filter(text => place(text) >= line).slice(0, 3);
    const under = here.filter(text => place(text) < line).slice(-3).reverse();
    const next = over.every((text, i) => place(text) === line + i)
      && under.every((text, i) => place(text) === line - 1 - i);
    const cards = side => side.map(([, card]) => card);
    hardSetTexts(section, cards(over), cards(under), side => next ? `Just ${side} the line`
      : `${side} the line, the nearest of the ${texts.length} texts in this report`);
  });
}
