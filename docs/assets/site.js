// Wide tables scroll sideways in a frame that the theme makes; the keyboard must reach it.
window.addEventListener("load", () => {
  for (const frame of document.querySelectorAll(".md-typeset__scrollwrap")) frame.tabIndex = 0;
});
