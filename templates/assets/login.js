// With SameSite=Strict, a link from another site sends no session cookie with the first page. A request from this page
// does; if a session exists, continue automatically.

const next = document.getElementById("on").href;
fetch(next, { redirect: "manual", headers: { accept: "text/html" } }).then(
  (answer) => {
    if (answer.ok) location.replace(next);
  },
  () => {},
);
