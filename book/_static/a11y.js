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
    document.querySelectorAll("pre, .cell_output .text_html, .math, .table-scroll").forEach((box) => {
      if (box.scrollWidth > box.clientWidth && !box.hasAttribute("tabindex")) box.tabIndex = 0;
    });
  };
  // the bibliography is marked as a list whose children are no list items
  document.querySelectorAll(".citation-list[role=list]").forEach((list) => list.removeAttribute("role"));
  mend();
  new MutationObserver(mend).observe(document.body, {
    childList: true, subtree: true, attributes: true, attributeFilter: ["aria-label"],
  });
});
