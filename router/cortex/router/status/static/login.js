// `cortex status --open` passes the key after the "#", which browsers do not send to servers.
"use strict";

const key = new URLSearchParams(location.hash.slice(1)).get("key");
if (key) {
  history.replaceState(null, "", location.pathname);
  document.querySelector("#key").value = key;
  document.querySelector("#login").submit();
}
