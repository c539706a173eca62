// Moves the explorer of explorer.html.j2: in a report, which allows this script by its hash and
// holds some of the texts, and in JupyterLab, where the kernel gives all of them.

// Makes the sliders of a section work. `at` is [slider, its stop]; moved(at, count) is told where
// the line is, at first and after every move.
function hardSetSliders(section, at, moved) {
  const {stops, windows, pictures} = hardSetNumbers(section);
  const said = section.querySelector("output"), inputs = section.querySelectorAll("input");
  const lines = section.querySelectorAll("path");
  const number = x => x.toLocaleString("en"), percent = (a, b) => `${(100 * a / b).toFixed(1)}%`;
  const nearest = (name, stop) => {
    const of = name === "share" ? 1 : 0, far = stops[name].map(s => Math.abs(s[of] - stop[of]));
    return far.indexOf(Math.min(...far));
  };
  const show = () => {
    const stop = stops[at[0]][at[1]], [threshold, count, each] = stop;
    said.textContent = `${number(count)} of ${number(windows)} windows `
      + `(${percent(count, windows)}) are at least ${threshold} nats harder for the student`;
    for (const input of inputs) {
      // the slider that was moved keeps its stop, or its keys would be stuck between two windows
      input.value = input.name === at[0] ? at[1] : nearest(input.name, stop);
      input.setAttribute("aria-valuetext", said.textContent);
      input.nextElementSibling.textContent =
        input.name === "share" ? percent(count, windows) : threshold.toFixed(4);
    }
    for (const rect of section.querySelectorAll("rect"))
      rect.classList.toggle("hard", rect.dataset.difficulty >= threshold);
    pictures.forEach(({zero, nat}, i) => {
      const [x, y] = [0, 1].map(axis => zero[axis] + threshold * nat[axis]);
      lines[i].setAttribute("transform", `translate(${x} ${y})`);
    });
    section.querySelectorAll("tbody tr").forEach((row, i) => {
      const all = row.dataset.windows, share = percent(each[i], all);
      row.cells[1].textContent = `${number(each[i])} of ${number(+all)}`;
      row.cells[2].firstChild.textContent = row.querySelector("i").style.width = share;
    });
    moved(at, count);
  };
  // JupyterLab leaves the arrows to what has this attribute, but would no longer save on Ctrl+S
  window.addEventListener("keydown", ({target, ctrlKey, metaKey}) => section.contains(target)
    && target.toggleAttribute("data-lm-suppress-shortcuts", !ctrlKey && !metaKey), true);
  for (const input of inputs) {
    input.parentElement.hidden = false;
    input.addEventListener("input", () => show(at = [input.name, +input.value]));
  }
  show();
}

function hardSetNumbers(section) {
  return JSON.parse(section.querySelector("script").textContent);
}

function hardSetTexts(section, above, below, title) {
  section.querySelector(".texts").innerHTML = [["above", above], ["below", below]].map(
    ([side, cards]) => `<p><b>${title(side)}</b></p>${cards.join("")}`).join("");
}

// For widgets.Explorer: texts are asked for when the line has rested, a choice is kept on a click.
function hardSetInJupyter({model, el}) {
  el.innerHTML = model.get("html");
  const section = el.querySelector("section"), texts = section.querySelector(".texts");
  const button = section.querySelector("button"), done = button.nextElementSibling;
  let at = model.get("at"), rest;
  section.dataset.ready = "yes";
  const ask = () => {
    clearTimeout(rest);
    model.set("at", at);
    model.save_changes();
  };
  const answer = () => {
    const near = model.get("near");
    if (String(near.at) !== String(at)) return;  // the line has moved on
    hardSetTexts(section, near.above, near.below, side => `Just ${side} the line`);
    texts.ariaBusy = "false";
  };
  const report = () => { done.textContent = model.get("done"); };
  hardSetSliders(section, at, (now, count) => {
    at = now;
    button.disabled = count === 0;
    if (String(at) === String(model.get("at"))) return;
    done.textContent = "";  // it was said of another line
    texts.ariaBusy = "true";
    clearTimeout(rest);
    rest = setTimeout(ask, 150);
  });
  button.parentElement.hidden = false;
  button.addEventListener("click", () => {
    ask();
    model.send(at);
  });
  model.on("change:near", answer);
  model.on("change:done", report);
  answer();
  report();
}

for (const section of document.querySelectorAll(".explorer:not([data-ready])")) {
  section.dataset.ready = "yes";
  const {known, texts, at} = hardSetNumbers(section);
  hardSetSliders(section, at, (_, count) => {
    const line = known - count;
    const above = texts.filter(([rank]) => rank >= line).slice(0, 3);
    const below = texts.filter(([rank]) => rank < line).slice(-3).reverse();
    const next = above.every(([rank], i) => rank === line + i)
      && below.every(([rank], i) => rank === line - 1 - i);
    const cards = side => side.map(([, card]) => card);
    hardSetTexts(section, cards(above), cards(below), side => next ? `Just ${side} the line`
      : `${side} the line, the nearest of the ${texts.length} texts in this report`);
  });
}
