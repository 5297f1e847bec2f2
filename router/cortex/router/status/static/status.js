// Updates the page: applies fragments from /status/live, counts times down, and confirms before it acts.
// The server decides and renders all content; nothing here makes HTML.
"use strict";

const $ = (selector, within = document) => within.querySelector(selector);
const $$ = (selector, within = document) => [...within.querySelectorAll(selector)];

// Times, by the server's clock, because the browser's may be wrong.

let ahead = Number(document.body.dataset.now) - Date.now() / 1000;
const now = () => Date.now() / 1000 + ahead;
const two = (n) => String(n).padStart(2, "0");

function clock(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s} s`;
  const m = Math.floor(s / 60);
  if (m < 60) return m < 10 ? `${m} min ${two(s % 60)} s` : `${m} min`;
  const h = Math.floor(m / 60);
  return h < 48 ? `${h} h ${two(m % 60)} min` : `${Math.floor(h / 24)} d`;
}

function format(time) {
  const at = Number(time.dataset.at);
  const gone = now() - at;
  switch (time.dataset.say) {
    case "since": return clock(gone);
    case "left":
      if (gone < 0) return clock(-gone + 0.999);
      return gone > Number(time.dataset.late ?? Infinity) ? "longer than usual" : time.dataset.over;
    default: return gone < 1 ? "now" : `${gone < 60 || gone >= 3600 ? clock(gone) : `${Math.floor(gone / 60)} min`} ago`;
  }
}

function tick(within = document) {
  for (const time of $$("time[data-at]", within)) {
    const text = format(time);
    if (time.textContent !== text) time.textContent = text;
  }
  for (const bar of $$("[data-takes]", within)) {
    const share = (now() - Number(bar.dataset.from)) / Number(bar.dataset.takes);
    bar.setAttribute("width", `${(100 * Math.min(share, 0.98)).toFixed(2)}%`);
  }
}
setInterval(tick, 1000);

// Fragments. Elements are changed in place, which preserves focus, selection and open details.

function parsed(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  return template.content;
}

function morph(old, fresh) {
  if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName) return old.replaceWith(fresh);
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return undefined;
  }
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && name !== "open" && name !== "hidden") old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (name !== "open" && old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  return morphAll(old, fresh);
}

function morphAll(old, fresh) {
  const want = [...fresh.childNodes];
  want.forEach((node, nth) => {
    const there = old.childNodes[nth];
    if (there === undefined) old.append(node);
    else morph(there, node);
  });
  while (old.childNodes.length > want.length) old.lastChild.remove();
}

const touched = new Set();

function put({ id, html, into, order }) {
  const fresh = parsed(html);
  const there = document.getElementById(id);
  if (!into) {
    if (there) morphAll(there, fresh);
    tick(there);
    return;
  }
  const element = fresh.firstElementChild;
  const list = document.getElementById(into);
  if (there) {
    const moved = there.dataset.order !== order;
    morph(there, element);
    if (moved) touched.add(into);
    tick(there);
  } else {
    list.append(element);
    touched.add(into);
    tick(element);
  }
}

// Rows move only while the pointer and the focus are outside of them.
function arrange() {
  for (const id of touched) {
    const list = document.getElementById(id);
    if (list.matches(":hover") || list.contains(document.activeElement)) continue;
    touched.delete(id);
    const sorted = [...list.children].sort((a, b) => (a.dataset.order < b.dataset.order ? -1 : 1));
    sorted.forEach((element, nth) => {
      if (list.children[nth] !== element) list.insertBefore(element, list.children[nth] ?? null);
    });
  }
}

let received = new Set();

function take(news) {
  ahead = news.now - Date.now() / 1000;
  for (const piece of news.put ?? []) {
    received.add(piece.id);
    put(piece);
  }
  for (const id of news.drop ?? []) document.getElementById(id)?.remove();
  if (news.whole) {
    for (const element of $$("#hosts > *, #functions > *")) if (!received.has(element.id)) element.remove();
  }
  arrange();
  for (const filter of filters.values()) filter();
  const watched = $(".details[data-watch]", panel);
  if (watched && panel.open && (news.put ?? []).some((p) => p.id === watched.dataset.watch)) renew(watched);
}

// The stream.

const link = $("#link");

function linked(state, text) {
  link.dataset.state = state;
  $(".say", link).textContent = text;
}

let lastEventAt = 0;
let source = null;

function connect() {
  source?.close();
  received = new Set();
  source = new EventSource(document.body.dataset.live);
  source.onopen = () => { lastEventAt = Date.now(); received = new Set(); linked("live", "live"); };
  source.onmessage = (event) => {
    lastEventAt = Date.now();
    if (link.dataset.state !== "live") linked("live", "live");
    take(JSON.parse(event.data));
  };
  source.onerror = () => {
    linked("lost", "not connected; trying again");
    // The browser does not retry a rejected stream: retry here, and find out whether a login is needed.
    if (source.readyState === EventSource.CLOSED) setTimeout(again, 3000);
  };
}

async function again() {
  try {
    const answer = await fetch("status", { method: "GET", redirect: "manual" });
    if (answer.type === "opaqueredirect" || answer.status === 401) return location.assign("status/login");
  } catch { /* the router is away: the stream is tried again */ }
  return connect();
}

setInterval(() => {
  if (link.dataset.state === "live" && Date.now() - lastEventAt > 25000) linked("lost", "no event for a while");
}, 5000);

// Search.

const filters = new Map();

function finder(input) {
  const list = document.getElementById(input.dataset.filters);
  const none = $(`[data-none="${list.id}"]`);
  const chips = $$("[data-tone]", input.closest(".finder"));
  const apply = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    const tones = (chips.find((c) => c.getAttribute("aria-pressed") === "true")?.dataset.tone ?? "").split(" ").filter(Boolean);
    let visible = 0;
    for (const element of list.children) {
      const shown = words.every((w) => element.dataset.find.includes(w)) && (!tones.length || tones.includes(element.dataset.tone));
      if (element.hidden === shown) element.hidden = !shown;
      visible += shown;
    }
    none.hidden = visible > 0;
    if (input.dataset.from) input.closest(".finder").hidden = list.children.length < Number(input.dataset.from) && !input.value;
  };
  input.addEventListener("input", apply);
  for (const chip of chips) {
    chip.addEventListener("click", () => {
      for (const other of chips) other.setAttribute("aria-pressed", String(other === chip));
      apply();
    });
  }
  filters.set(list.id, apply);
  apply();
}

// Details and plans, in the panel.

const panel = $("#panel");
const panelBody = $("#panel-body");
const trail = [];

async function fetched(url) {
  const answer = await fetch(url, { headers: { accept: "text/html" } });
  if (answer.redirected || answer.status === 401) location.assign("status/login");
  if (!answer.ok) throw new Error(await why(answer));
  return answer.text();
}

async function why(answer) {
  try {
    return (await answer.json()).error.message;
  } catch {
    return `the router answered ${answer.status}`;
  }
}

async function open(url, { back = false, focus = "#panel-title" } = {}) {
  let html;
  try {
    html = await fetched(url);
  } catch (error) {
    return toast(error.message, "failed");
  }
  if (!back) trail.push(url);
  panelBody.replaceChildren(parsed(html));
  tick(panelBody);
  if (!panel.open) panel.showModal();
  for (const element of $$("[data-end]", panelBody)) element.scrollTop = element.scrollHeight;
  $(focus, panelBody)?.focus();
  return undefined;
}

let renewing = false;

async function renew(watched) {
  if (renewing) return;
  renewing = true;
  try {
    const html = await fetched(watched.dataset.src);
    const still = $(".details[data-watch]", panelBody);
    if (still?.dataset.src === watched.dataset.src) {
      morph(still, parsed(html).firstElementChild);
      tick(still);
    }
  } catch { /* the next change tries again */ }
  setTimeout(() => { renewing = false; }, 1000);
}

function back() {
  trail.pop();
  const before = trail.at(-1);
  return before ? open(before, { back: true }) : panel.close();
}

panel.addEventListener("close", () => { trail.length = 0; panelBody.replaceChildren(); });
panel.addEventListener("click", (event) => { if (event.target === panel) panel.close(); });

document.addEventListener("click", (event) => {
  const opener = event.target.closest("[data-open], [data-plan]");
  if (opener) open(opener.dataset.open ?? opener.dataset.plan);
  if (event.target.closest("[data-back]")) back();
});

// Searching a log in place.
document.addEventListener("submit", (event) => {
  const form = event.target.closest("form.look-for");
  if (!form) return;
  event.preventDefault();
  const url = `${form.getAttribute("action")}?${new URLSearchParams(new FormData(form))}`;
  trail[trail.length - 1] = url;
  open(url, { back: true, focus: "#log-grep" });
});

// Actions, which start only from a displayed plan.

document.addEventListener("submit", async (event) => {
  const form = event.target.closest("form.do");
  if (!form) return;
  event.preventDefault();
  const button = $("button.primary", form);
  const error = $(".error", form);
  const query = new URLSearchParams(new FormData(form)).toString();
  const title = form.dataset.title;
  button.disabled = true;
  error.hidden = true;
  // The response to a drain arrives when all functions have moved; the page shows the progress.
  const slow = setTimeout(() => { if (panel.open) panel.close(); toast(`${title}: under way`); }, 1500);
  try {
    const answer = await fetch(form.dataset.post + (query ? `?${query}` : ""), { method: "POST" });
    if (!answer.ok) throw new Error(await why(answer));
    toast(`${title}: done`, "done");
    if (form.isConnected) panel.close();
  } catch (failure) {
    if (form.isConnected) {
      error.textContent = failure.message;
      error.hidden = false;
      button.disabled = false;
    } else toast(`${title}: ${failure.message}`, "failed");
  } finally {
    clearTimeout(slow);
  }
});

function toast(text, kind = "") {
  const element = document.createElement("p");
  element.className = `toast ${kind}`;
  element.textContent = text;
  $("#toasts").append(element);
  setTimeout(() => element.remove(), kind === "failed" ? 12000 : 5000);
}

// Keys.

document.addEventListener("keydown", (event) => {
  if (event.target.closest("input, textarea, select") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/" && !panel.open) {
    event.preventDefault();
    $("#find").focus();
  }
});

for (const element of $$("[data-scripted], [data-try]")) element.hidden = false;
for (const input of $$("input[data-filters]")) finder(input);
tick();
connect();
