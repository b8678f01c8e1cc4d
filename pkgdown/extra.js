// "On this page" is in the page already, for readers without the network. Where pkgdown's
// own list has been made beside it, with subsections, that one stays.
$(function () {
  const lists = $("#toc > ul");
  if (lists.length > 1) {
    lists.first().remove();
  }
});
