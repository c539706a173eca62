// What can be reached by the Tab key is marked, and then told: its tag, its mark, its outline.
({
  mark() {
    for (const el of document.querySelectorAll("body *")) {
      const scrolls = /auto|scroll/.test(getComputedStyle(el).overflowX)
        && el.scrollWidth > el.clientWidth;
      if (scrolls || el.matches("a, summary, input") && el.checkVisibility())
        el.dataset.wanted = el.matches("div") ? "box" : el.localName;
    }
  },
  focused() {
    const el = document.activeElement;
    return [el.localName, el.dataset.wanted, getComputedStyle(el).outlineStyle];
  },
})
