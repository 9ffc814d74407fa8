// What the theme leaves open for those who use a keyboard or a screen reader.
new MutationObserver(name).observe(document.body, {childList: true, subtree: true});
name();

function name() {
  // Code that is wider than its box scrolls by the arrow keys, once it can have the focus.
  document.querySelectorAll("pre > code:not([tabindex])").forEach((code) => { code.tabIndex = 0; });
  document.querySelectorAll(".md-code__nav:not([aria-label])").forEach((buttons, number) => {
    buttons.setAttribute("aria-label", `Code ${number + 1}`);
  });
}
