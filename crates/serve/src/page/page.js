// What a page cannot do without a script: streams. See crates/serve/src/page/mod.rs.
"use strict";

const at = (id) => document.getElementById(id);
const make = (tag, name, text) => {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text !== undefined) element.textContent = text;
  return element;
};

// `cascade:budget=8 residual` as the list of methods that a request has; null for the server's own.
function methods(text) {
  const words = text.trim().split(/\s+/).filter((word) => word);
  if (words.length === 0 || (words.length === 1 && words[0] === "plain")) return [];
  return words.map((word) => {
    const colon = word.indexOf(":");
    const method = { id: colon < 0 ? word : word.slice(0, colon) };
    for (const pair of colon < 0 ? [] : word.slice(colon + 1).split(",")) {
      const [key, ...rest] = pair.split("=");
      const value = rest.join("=");
      try { method[key] = JSON.parse(value); } catch { method[key] = value; }
    }
    return method;
  });
}

// Posts, and calls `hear` with each event's data as JSON; `[DONE]` and comments are left out.
async function events(path, body, signal, hear) {
  const headers = { "Content-Type": "application/json" };
  const key = at("key");
  if (key && key.value) headers.Authorization = `Bearer ${key.value}`;
  const response = await fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal });
  if (!response.ok) {
    const fault = await response.json().catch(() => null);
    throw new Error(fault?.error?.message ?? `the server answered ${response.status}`);
  }
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    held += value;
    const lines = held.split("\n");
    held = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new Error(event.error.message);
      hear(event);
    }
  }
}

// An answer on the page: its text token by token, and what it cost so far.
class Answer {
  constructor(title) {
    this.box = make("article", "answer");
    this.body = make("div", "text");
    this.line = make("p", "figures");
    this.box.append(make("h3", "", title), this.body, this.line);
    this.text = "";
    this.count = { tokens: 0, guessed: 0 };
    this.cells = [];
    this.begun = performance.now();
    this.first = null;
  }

  hear(event) {
    const told = event.tessera;
    const choice = event.choices?.[0];
    if (told?.canvas) this.fill(told.canvas);
    const text = choice?.delta?.content ?? choice?.text;
    if (told?.how) {
      this.first ??= performance.now();
      this.count.tokens += told.tokens;
      if (told.how === "guessed") this.count.guessed += told.tokens;
    }
    if (text) {
      this.text += text;
      if (told?.how !== "filled") this.body.append(make("span", `t ${told?.how ?? "drawn"}`, text));
    }
    if (told?.stats) this.end(told.stats);
    else this.live();
  }

  // A canvas: one cell a position, coloured by the step that wrote it.
  fill(canvas) {
    this.first ??= performance.now();
    while (this.cells.length < canvas.length) {
      const cell = make("span", "t mask", "▒");
      this.cells.push({ cell, step: null });
      this.body.append(cell);
    }
    for (const [place, text] of canvas.filled) {
      const one = this.cells[place];
      if (!one) continue;
      one.step = canvas.step ?? 0;
      one.cell.textContent = text;
    }
    for (const place of canvas.masked) {
      const one = this.cells[place];
      if (one) [one.step, one.cell.textContent] = [null, "▒"];
    }
    const last = Math.max(1, canvas.step ?? 0);
    for (const { cell, step } of this.cells) {
      cell.className = step === null ? "t mask" : `t filled s${Math.min(7, Math.floor((8 * step) / (last + 1)))}`;
    }
    this.count.tokens = this.cells.filter((one) => one.step !== null).length;
    this.steps = canvas.step === null ? 0 : canvas.step + 1;
    this.live();
  }

  live() {
    const seconds = (performance.now() - (this.first ?? this.begun)) / 1000;
    const rate = seconds > 0.2 ? ` · ${(this.count.tokens / seconds).toFixed(0)} tokens/s` : "";
    const steps = this.steps ? ` · ${this.steps} steps` : "";
    const guessed = this.count.guessed ? ` · ${this.count.guessed} guessed` : "";
    this.line.textContent = `${this.count.tokens} tokens${guessed}${steps}${rate}`;
  }

  end(stats) {
    const parts = [`${stats.drawn_tokens} tokens`];
    if (stats.decode_seconds > 0 && stats.decode_tokens > 0) {
      parts.push(`${(stats.decode_tokens / stats.decode_seconds).toFixed(0)} tokens/s`);
    }
    parts.push(`${stats.passes} passes`);
    if (stats.drafted_tokens) {
      const share = (100 * stats.accepted_tokens) / stats.drafted_tokens;
      parts.push(`${stats.accepted_tokens} of ${stats.drafted_tokens} guesses accepted (${share.toFixed(0)} %)`);
    }
    parts.push(`prompt ${stats.prompt_tokens} tokens, ${stats.reused_tokens} from the cache`);
    if (stats.cache_bytes) parts.push(`cache ${(stats.cache_bytes / 1e6).toFixed(1)} MB`);
    if (stats.whole_rows > stats.kept_rows) parts.push(`${(100 - (100 * stats.kept_rows) / stats.whole_rows).toFixed(0)} % of rows forgotten`);
    this.line.textContent = parts.join(" · ");
  }
}

function chat(form) {
  const chats = form.dataset.chat === "yes";
  let messages = [];
  let abort = null;

  async function ask(prompt) {
    abort = new AbortController();
    at("send").disabled = true;
    at("stop").disabled = false;
    const turn = make("section", "turn");
    const answers = make("div", "answers");
    turn.append(make("p", "said", prompt), answers);
    at("talk").append(turn);
    const recipes = [at("recipe").value, at("second").value].map((text) => text.trim());
    const asked = recipes[1] ? recipes : [recipes[0]];
    const body = {
      model: form.dataset.model, stream: true, details: true, seed: Number(at("seed").value),
      temperature: Number(at("temperature").value), max_tokens: Number(at("tokens").value),
    };
    const said = [...messages, { role: "user", content: prompt }];
    if (chats) body.messages = said;
    else body.prompt = prompt;
    const done = [];
    try {
      for (const recipe of asked) {
        const answer = new Answer(recipe || "plain");
        answers.append(answer.box);
        at("status").textContent = `${recipe || "plain"} answers`;
        const path = chats ? "/v1/chat/completions" : "/v1/completions";
        await events(path, { ...body, methods: methods(recipe) }, abort.signal, (event) => answer.hear(event));
        done.push(answer);
      }
      if (done.length === 2) {
        const [a, b] = done.map((answer) => answer.text);
        let same = 0;
        while (same < a.length && a[same] === b[same]) same += 1;
        const words = a === b ? "The texts are equal, character by character." : `The texts differ from character ${same + 1} on.`;
        turn.append(make("p", "same", words));
      }
      at("status").textContent = "Done";
      if (chats) messages = [...said, { role: "assistant", content: done[0].text }];
    } catch (error) {
      at("status").textContent = error.name === "AbortError" ? "Stopped" : error.message;
    } finally {
      at("send").disabled = false;
      at("stop").disabled = true;
      at("prompt").focus();
    }
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const prompt = at("prompt").value;
    if (!prompt.trim() || at("send").disabled) return;
    if (chats) at("prompt").value = "";
    ask(prompt);
  });
  at("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  at("stop").addEventListener("click", () => abort?.abort());
  at("fresh").addEventListener("click", () => {
    abort?.abort();
    messages = [];
    at("talk").replaceChildren();
    at("status").textContent = "";
    at("prompt").focus();
  });
  const wanted = new URLSearchParams(location.search).get("recipe");
  if (wanted) at("recipe").value = wanted;
}

function check(button) {
  button.addEventListener("click", async () => {
    const bar = at("progress");
    button.disabled = true;
    [bar.hidden, bar.value] = [false, 0];
    at("status").textContent = "Measuring the cost of a pass";
    try {
      await events(`/v1/methods/${button.dataset.slug}/check`, {}, undefined, (event) => {
        if (event.of) {
          [bar.max, bar.value] = [event.of, event.done];
          at("status").textContent = `${event.done} of ${event.of} runs`;
        }
        // The server made it of a record, and escaped what the record says.
        if (event.html) {
          at("record").innerHTML = event.html;
          at("status").textContent = event.kept ? "Done; the record is kept" : "Done; the record could not be kept";
        }
      });
    } catch (error) {
      at("status").textContent = error.message;
    } finally {
      button.disabled = false;
      bar.hidden = true;
    }
  });
}

if (at("ask")) chat(at("ask"));
if (at("check")) check(at("check"));
