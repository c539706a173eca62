// On paper, what is folded; with all folds open, words beyond the page where nothing scrolls, beyond
// their block, cut off, or too small to read, and columns of a table that do not fit.
() => {
  const found = new Set();
  if (matchMedia("print").matches)
    for (const part of document.querySelectorAll("details > :not(summary)"))
      if (!part.checkVisibility()) found.add(`folded: ${part.textContent.slice(0, 80)}`);
  for (const fold of document.querySelectorAll("details")) fold.open = true;
  for (const row of document.querySelectorAll("main tr"))  // the first five columns are seen whole
    for (const cell of [...row.cells].slice(0, 5))
      if (cell.getBoundingClientRect().right > innerWidth + 1.5) found.add(`cut column: ${cell.textContent.slice(0, 60)}`);
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const within = (a, b) => a.left > b.left - 1.5 && a.right < b.right + 1.5;
  if (document.documentElement.scrollWidth > innerWidth) found.add("the page scrolls sideways");
  for (let text; text = walk.nextNode();) {
    const boxes = [];
    for (let el = text.parentElement; el; el = el.parentElement)
      boxes.push([getComputedStyle(el), el.getBoundingClientRect()]);
    const block = boxes.find(([style]) => !/^inline|math/.test(style.display));
    const scrolling = boxes.find(([style]) => /auto|scroll/.test(style.overflowX));
    for (const {0: word, index} of text.textContent.matchAll(/\S+/g)) {
      const range = new Range(), say = what => found.add(`${what}: ${word}`);
      range.setStart(text, index);
      range.setEnd(text, index + word.length);
      const place = range.getBoundingClientRect();
      if (!place.width) break;
      if (!matchMedia("print").matches && parseFloat(boxes[0][0].fontSize) < 10) say("smaller than 10 px");
      if (block !== scrolling && !within(place, block[1])) say("beyond its box");
      if (!scrolling && !within(place, {left: 0, right: innerWidth})) say("beyond the page");
      for (const [{overflowX, overflowY}, box] of boxes)
        if (/hidden|clip/.test(overflowX) && !within(place, box)
          || /hidden|clip/.test(overflowY) && place.bottom > box.bottom + 1.5) say("cut off");
    }
  }
  return [...found];
}
