// `cortex status --open` passes the key after the "#", which browsers do not send to servers.
"use strict";

const given = new URLSearchParams(location.hash.slice(1)).get("key");
if (given) {
  history.replaceState(null, "", location.pathname);
  document.querySelector("#key").value = given;
  document.querySelector("#login").submit();
}
