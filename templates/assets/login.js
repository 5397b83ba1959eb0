// Who comes by a link from another site brings no session to the first page. This page's own
// questions do bring it: if there is one, it goes on by itself.

const next = document.getElementById("on").href;
fetch(next, { redirect: "manual", headers: { accept: "text/html" } }).then(
  (answer) => {
    if (answer.ok) location.replace(next);
  },
  () => {},
);
