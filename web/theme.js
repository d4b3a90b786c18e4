// A classic script in the head: the colours are right before anything is painted.
(function () {
  var root = document.documentElement;
  try {
    var theme = localStorage.getItem("weft.theme");
    if (theme === "light" || theme === "dark") root.dataset.theme = theme;
  } catch (error) {
    // Storage is forbidden: the system's choice stands.
  }
})();
