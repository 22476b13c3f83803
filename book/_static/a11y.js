// What the theme leaves unsaid to screen readers and keyboards. It writes labels after the page has loaded, so a
// MutationObserver repeats the mending whenever it does.
addEventListener("load", () => {
  const letters = (element) => element.textContent.replace(/[^a-z]/gi, "").length;
  const mend = () => {
    // a label that hides the words on a button: the words are the better name
    document.querySelectorAll("button[aria-label], summary[aria-label]").forEach((button) => {
      if (letters(button) > 1) button.removeAttribute("aria-label");
    });
    // what scrolls sideways must be reachable by keyboard
    document.querySelectorAll("pre, figure, .cell_output .text_html, .math, .table-scroll").forEach((box) => {
      if (box.scrollWidth > box.clientWidth && !box.hasAttribute("tabindex")) box.tabIndex = 0;
    });
  };
  // columns that hold nothing but numbers, so that the style can set them under each other
  document.querySelectorAll("table.dataframe").forEach((table) => {
    const rows = [...table.querySelectorAll("tr")].map((row) => [...row.cells].reverse());
    const body = rows.filter((cells) => cells[0]?.tagName === "TD");
    for (let at = 0; at < (body[0]?.length ?? 0); at += 1) {
      const column = body.map((cells) => cells[at]).filter((cell) => cell?.tagName === "TD");
      const number = column.length > 0 && column.every((cell) => !/[a-z]{3}/i.test(cell.textContent));
      if (number) rows.forEach((cells) => cells[at]?.colSpan === 1 && cells[at].classList.add("number"));
    }
  });
  // the bibliography is marked as a list whose children are no list items
  document.querySelectorAll(".citation-list[role=list]").forEach((list) => list.removeAttribute("role"));
  mend();
  new MutationObserver(mend).observe(document.body, {
    childList: true, subtree: true, attributes: true, attributeFilter: ["aria-label"],
  });
});
