// Sends one prompt to one function and shows its progress: held, starting, first token, done.
// The phases of a start are read from the function's row, which the server updates.
"use strict";

(() => {
  const play = document.querySelector("#play");
  const form = document.querySelector("#play-form");
  const name = document.querySelector("#play-function");
  const steps = document.querySelector("#play-steps");
  const answer = document.querySelector("#play-answer");
  const figures = document.querySelector("#play-figures");
  const send = document.querySelector("#play-send");
  const stop = document.querySelector("#play-stop");
  let running = null;

  document.addEventListener("click", (event) => {
    const opener = event.target.closest("[data-try]");
    if (!opener) return;
    const panel = document.querySelector("#panel");
    if (panel.open) panel.close();
    if (opener.dataset.try) name.value = opener.dataset.try;
    if (!play.open) play.show();
    (name.value ? document.querySelector("#play-prompt") : name).focus();
  });
  document.querySelector("#play-close").addEventListener("click", () => close());
  play.addEventListener("keydown", (event) => { if (event.key === "Escape") close(); });
  stop.addEventListener("click", () => running?.abort());

  function close() {
    running?.abort();
    play.close();
    document.querySelector(".top [data-try]").focus();
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!running) ask();
  });

  function seconds(ms) {
    return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(ms < 10000 ? 2 : 1)} s`;
  }

  class Steps {
    constructor() {
      this.began = performance.now();
      this.last = null;
      this.held = false;
      steps.replaceChildren();
      steps.hidden = false;
    }

    say(text, kind = "") {
      if (this.last?.dataset.text === text) return;
      this.last?.classList.add("over");
      this.held ||= text.startsWith("held");
      const item = document.createElement("li");
      item.dataset.text = text;
      item.className = kind;
      const what = document.createElement("span");
      what.textContent = text;
      const when = document.createElement("span");
      when.className = "n quiet";
      when.textContent = seconds(performance.now() - this.began);
      item.append(what, when);
      steps.append(item);
      this.last = item;
      item.scrollIntoView({ block: "nearest" });
    }
  }

  function rowOf(id) {
    return [...document.querySelectorAll("#functions > tr")].find((r) => r.dataset.id === id || r.dataset.aliases.split(" ").includes(id));
  }

  async function ask() {
    const model = name.value.trim();
    const most = Number(document.querySelector("#play-most").value);
    const progress = new Steps();
    running = new AbortController();
    send.hidden = true;
    stop.hidden = false;
    answer.textContent = "";
    answer.hidden = figures.hidden = true;
    let first = 0;
    let pieces = 0;
    let usage = null;
    const row = rowOf(model);
    progress.say(row && row.dataset.tone !== "busy" && row.dataset.tone !== "idle" ? `sent; ${model} is ${row.dataset.state}` : "sent");
    const watching = setInterval(() => {
      const current = rowOf(model);
      if (first || !current) return;
      if (current.dataset.tone === "coming") progress.say(`held: ${current.dataset.state}${current.dataset.phase ? `, ${current.dataset.phase}` : ""}`, "coming");
      else if (current.dataset.tone === "failing") progress.say("held: its start failed", "failing");
      else if (current.dataset.tone === "idle" || current.dataset.tone === "busy") progress.say("ready; waiting for the first token");
    }, 100);
    try {
      const reply = await fetch("v1/chat/completions", {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({
          model, stream: true, stream_options: { include_usage: true }, max_tokens: most,
          messages: [{ role: "user", content: document.querySelector("#play-prompt").value }],
        }),
        signal: running.signal,
      });
      if (!reply.ok) throw new Error((await reply.json().catch(() => null))?.error?.message ?? `the router answered ${reply.status}`);
      if (reply.headers.get("x-cortex-start") === "cold" && !progress.held) progress.say("held until it is up", "coming");
      for await (const event of events(reply.body)) {
        if (event.error) throw new Error(event.error.message ?? "the answer broke off");
        if (event.usage) usage = event.usage;
        const delta = event.choices?.[0]?.delta ?? {};
        const text = delta.content || delta.reasoning_content || delta.reasoning || "";
        if (!text) continue;
        pieces += 1;
        if (!first) {
          first = performance.now();
          progress.say("first token", "done");
          answer.hidden = false;
        }
        answer.append(text);
        answer.scrollTop = answer.scrollHeight;
      }
      progress.say("done", "done");
    } catch (error) {
      progress.say(error.name === "AbortError" ? "stopped" : error.message, error.name === "AbortError" ? "" : "failing");
    } finally {
      clearInterval(watching);
      progress.last?.classList.add("over");
      running = null;
      send.hidden = false;
      stop.hidden = true;
      tell(progress, first, usage?.completion_tokens ?? pieces);
    }
  }

  function tell(progress, first, tokens) {
    if (!first) return;
    const took = performance.now() - first;
    const rate = tokens > 1 && took > 0 ? `, ${((tokens - 1) / (took / 1000)).toFixed(1)} tokens/s` : "";
    figures.textContent = `first token after ${seconds(first - progress.began)} · ${tokens} tokens${rate}`;
    figures.hidden = false;
  }

  // Server-sent events of a fetched body, without keep-alive comments.
  async function* events(body) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += value;
      const blocks = rest.split(/\r?\n\r?\n/);
      rest = blocks.pop();
      for (const block of blocks) {
        const data = block.split(/\r?\n/).filter((l) => l.startsWith("data:")).map((l) => l.slice(5).trimStart()).join("\n");
        if (data && data !== "[DONE]") yield JSON.parse(data);
      }
    }
  }
})();
