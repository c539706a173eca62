// Moves the slider of report.explorer; a report allows it by its hash.
for (const box of document.querySelectorAll(".offline-explorer:not([data-ready])")) {
  box.dataset.ready = "yes";
  const {stops, texts, windows, known} = JSON.parse(box.querySelector("script").textContent);
  const [slider, said, near] = ["input", "output", "div"].map(name => box.querySelector(name));
  const side = (name, cards) =>
    `<p><b>Just ${name} the line</b></p>` + cards.map(([, card]) => card).join("");
  const show = () => {
    const [threshold, count] = stops[slider.value], line = known - count;
    const share = (100 * count / windows).toFixed(1), [some, all] = [count, windows]
      .map(n => n.toLocaleString("en"));
    said.textContent = `${some} of ${all} windows (${share}%) are at least ${threshold} nats `
      + "harder for the student";
    slider.setAttribute("aria-valuetext", said.textContent);
    near.innerHTML = side("above", texts.filter(([rank]) => rank >= line).slice(0, 3))
      + side("below", texts.filter(([rank]) => rank < line).slice(-3).reverse());
  };
  slider.addEventListener("input", show);
  show();
}
