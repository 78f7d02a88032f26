// The pages of a study: information, consent, trials, breaks, end. With a server, or from a folder (window.STUDY).
"use strict";

const STACKED = 700;          // CSS pixels: narrower windows show the two pictures of a pair below each other
const DEAF = 300;             // ms after a change in which no answer is taken
const IDLE = 30000;           // ms without a sign of life that count as active, at most
const LARGEST = 512;          // CSS pixels of a picture's side that is enlarged
const main = document.getElementById("main");
const progress = document.getElementById("progress");
const notice = document.getElementById("notice");

const memory = {};            // in place of localStorage where there is none
function load(key, other) {
  try { return JSON.parse(localStorage.getItem(key)) ?? memory[key] ?? other; } catch { return memory[key] ?? other; }
}
function save(key, value) {
  memory[key] = value;
  try { localStorage.setItem(key, JSON.stringify(value)); } catch { /* memory has it until the page closes */ }
}
function nonce() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
function sleep(ms) { return new Promise((resolve) => setTimeout(resolve, ms)); }
function device() { return { pointer: matchMedia("(pointer: coarse)").matches ? "coarse" : "fine", width: innerWidth }; }

// Where trials come from and answers go to. Both have: begin, state, consent, trial, answer, settled.

class Refused extends Error {
  constructor(status, told) { super(`refused: ${status}`); this.status = status; this.told = told; }
}

class Remote {
  async begin() {
    const { study, slot } = await this.state();
    this.slot = slot;
    this.key = `${study}/${slot}`;
    await this.flush();
  }

  async ask(path, body) {                                      // tries until the server answers
    for (let wait = 500; ; wait = Math.min(2 * wait, 15000)) {
      try {
        const how = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
        const reply = await fetch(path, { credentials: "same-origin", ...how });
        if (reply.ok) { notice.textContent = ""; return await reply.json(); }
        if (reply.status !== 429 && reply.status < 500) throw new Refused(reply.status, await reply.json().catch(() => ({})));
        if (reply.status === 429) { await sleep(1000); continue; }
      } catch (error) {
        if (error instanceof Refused) throw error;
      }
      notice.textContent = "No connection: your answers are kept here and sent as soon as it is back.";
      await sleep(wait);
    }
  }

  state() { return this.ask("state"); }
  consent() { return this.ask("consent", { consent: true, ...device() }); }
  trial(position) { return this.ask(`trial/${position}`); }

  answer(row) {                                                // kept at once, sent when it can be
    save(this.key, [...load(this.key, []), { ...row, slot: this.slot }]);
    this.sending = (this.sending ?? Promise.resolve()).then(() => this.flush());
  }

  async flush() {
    for (let queue = load(this.key, []); queue.length; queue = load(this.key, [])) {
      try { await this.ask("answer", queue[0]); } catch (error) {
        if (!(error instanceof Refused) || error.status === 403) throw error;   // of another rater: keep it
      }
      save(this.key, load(this.key, []).filter((row) => row.nonce !== queue[0].nonce));
    }
  }

  async settled() { await this.sending; }
}

class Local {
  async begin() {
    this.slot = Number(location.hash.slice(1)) || await number(Object.keys(STUDY.slots).length);
    this.plan = STUDY.slots[this.slot];
    if (!this.plan) throw new Refused(404);
    this.key = `${STUDY.study}/${this.slot}`;
    this.kept = load(this.key, { consent: null, device: "", answers: [] });
  }

  next() { return this.kept.answers.reduce((most, row) => Math.max(most, row.position + 1), 0); }
  async state() { return { ...this.plan.intro, slot: this.slot, consent: this.kept.consent === "given", next: this.next() }; }
  async trial(position) {
    const given = this.kept.answers.filter((row) => row.position === position).at(-1);
    return { ...this.plan.trials[position], given: given ? given.value : null };
  }
  async consent() {
    const { pointer, width } = device();
    this.kept = { ...this.kept, consent: "given", device: `${pointer} ${Math.floor(width / 100) * 100}` };
    save(this.key, this.kept);
  }
  answer(row) {
    this.kept = { ...this.kept, answers: [...this.kept.answers, { ...row, day: new Date().toISOString().slice(0, 10) }] };
    save(this.key, this.kept);
  }
  async settled() {}

  file() {
    const told = { study: STUDY.study, slot: this.slot, ...this.kept };
    const link = element("a", { download: `answers_${this.slot}.json` });
    link.href = URL.createObjectURL(new Blob([JSON.stringify(told, null, 1) + "\n"], { type: "application/json" }));
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }
}

// Pages

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}
function paragraphs(lines) { return lines.map((line) => element("p", {}, line)); }

function page(...children) {
  progress.textContent = "";
  main.replaceChildren(element("div", { class: "text" }, ...children));
  main.focus();
  scrollTo(0, 0);
}
function pressed(button) {
  return new Promise((resolve) => button.addEventListener("click", resolve, { once: true }));
}
async function told(title, lines, go) {
  const button = element("button", { type: "button" }, go);
  page(element("h1", {}, title), ...paragraphs(lines), button);
  await pressed(button);
}
async function number(most) {
  const field = element("input", { type: "number", min: 1, max: most, id: "number", required: "" });
  const form = element("form", {}, element("label", { for: "number" }, "Your number", field), element("button", {}, "Begin"));
  page(element("h1", {}, "Study"), form);
  await new Promise((resolve) => form.addEventListener("submit", (event) => { event.preventDefault(); resolve(); }));
  location.hash = field.value;
  return Number(field.value);
}
async function asked(state) {
  const box = element("input", { type: "checkbox", id: "consent" });
  const button = element("button", { type: "button", disabled: "" }, "Take part");
  box.addEventListener("change", () => { button.disabled = !box.checked; });
  page(element("h1", {}, state.title), ...paragraphs(state.texts.information),
    element("label", { for: "consent" }, box, "I have read this, I am of age, and I take part of my own will."), button);
  await pressed(button);
}

// A trial

function columns(count) {
  if (count < 3) return count === 2 && innerWidth < STACKED ? 1 : Math.max(count, 1);
  return innerWidth < 1000 ? 2 : count;
}
function worded(words, stacked) {
  const text = words.replace("{left}", stacked ? "first" : "left").replace("{right}", stacked ? "second" : "right");
  return text.charAt(0).toUpperCase() + text.slice(1);
}
function preload(trial) {                                      // whole before it is shown
  return Promise.all((trial.pictures ?? []).map(async (name) => {
    for (;;) {
      const image = new Image();
      image.src = `pictures/${name}.png`;
      image.alt = "";
      try { await image.decode(); return image; } catch { await sleep(1000); }
    }
  }));
}
function fit(images, size) {                                   // one CSS size for all, in whole device pixels
  if (!size) return;
  const across = columns(images.length), down = Math.ceil(images.length / across);
  const room = Math.min(document.documentElement.clientWidth - 32, 1248);
  const width = (room - 16 * (across - 1)) / across, height = Math.max(innerHeight * (images.length > across ? 0.8 : 0.6) / down, 120);
  const ratio = devicePixelRatio, largest = Math.min(width / size[0], height / size[1]) * ratio;
  const whole = Math.min(Math.floor(largest), Math.max(Math.floor(LARGEST * ratio / Math.max(...size)), 1));
  for (const image of images) {
    image.style.width = `${(whole >= 1 ? whole * size[0] : Math.floor(largest * size[0])) / ratio}px`;
    image.style.height = "auto";
    image.classList.toggle("enlarged", whole > 1);
  }
}

class Clock {                                                  // total and active time since now
  constructor() {
    this.start = this.last = performance.now();
    this.active = 0;
    this.visible = !document.hidden;
    this.live = () => this.tick();
    this.seen = () => { this.tick(); this.visible = !document.hidden; };
    for (const sign of Clock.signs) addEventListener(sign, this.live, { passive: true });
    document.addEventListener("visibilitychange", this.seen);
  }
  tick() {
    const now = performance.now();
    if (this.visible) this.active += Math.min(now - this.last, IDLE);
    this.last = now;
  }
  stop() {
    this.tick();
    for (const sign of Clock.signs) removeEventListener(sign, this.live);
    document.removeEventListener("visibilitychange", this.seen);
    return { active_ms: Math.round(this.active), total_ms: Math.round(this.last - this.start) };
  }
}
Clock.signs = ["pointermove", "pointerdown", "keydown", "scroll"];

async function ask(trial, images, where) {                     // -> the row to store, or null for "back"
  const id = nonce();
  const captions = images.length > 1 ? images.map(() => element("figcaption")) : [];
  const figures = images.map((image, i) => element("figure", {}, image, ...captions.slice(i, i + 1)));
  const grid = element("div", { class: "pictures" }, ...figures);
  const buttons = trial.answers.map((_, i) => element("button", { type: "button", "aria-keyshortcuts": i + 1 }));
  const answers = element("div", { class: "answers", role: "group", "aria-label": "Answers" }, ...buttons);
  const back = element("button", { type: "button", class: "quiet" }, "Back to my last answer");
  const text = trial.text === null ? [] : [element("p", { class: "words" }, trial.text)];
  const lay = () => {
    const stacked = images.length === 2 && columns(2) === 1;
    grid.style.gridTemplateColumns = `repeat(${columns(images.length)}, max-content)`;
    fit(images, trial.size);
    captions.forEach((caption, i) => { caption.textContent = images.length > 2 ? i + 1 : worded(i ? "{right}" : "{left}", stacked); });
    buttons.forEach((button, i) => button.replaceChildren(element("kbd", {}, String(i + 1)), worded(trial.answers[i], stacked)));
    answers.classList.toggle("tall", buttons.length > 6 || trial.answers.some((words) => words.length > 28));
  };
  lay();
  buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(trial.given === i + 1)));
  main.replaceChildren(...text, grid, element("h2", {}, trial.question), answers, ...(where.back ? [back] : []));
  progress.textContent = where.told;
  main.focus({ preventScroll: true });
  scrollTo(0, 0);
  await new Promise((resolve) => requestAnimationFrame(resolve));
  const clock = new Clock();
  const from = performance.now();

  return new Promise((resolve) => {
    const done = (value) => {
      if (performance.now() - from < DEAF) return;
      removeEventListener("keydown", key);
      removeEventListener("resize", lay);
      const times = clock.stop();
      for (const button of [...buttons, back]) button.disabled = true;
      resolve(value === null ? null : { nonce: id, position: trial.position, value, ...times });
    };
    const key = (event) => {
      if (event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
      const value = Number(event.key);
      if (value >= 1 && value <= buttons.length && event.key.length === 1) done(value);
      if (event.key === "Backspace" && where.back) { event.preventDefault(); done(null); }
    };
    addEventListener("keydown", key);
    addEventListener("resize", lay);
    buttons.forEach((button, i) => button.addEventListener("click", () => done(i + 1)));
    back.addEventListener("click", () => done(null));
  });
}

async function ready(source, position) {
  await source.settled();
  const trial = await source.trial(position);
  return { trial, images: await preload(trial) };
}

async function trials(source, state) {
  const due = {};                                              // position -> a trial on its way
  const at = (position) => (due[position] ??= ready(source, position));
  let next = state.next, position = next, paused = next;
  while (next < state.total) {
    if (position === next && position !== paused) {
      const done = position - state.practice;
      if (done === 0) await told("Now it begins", ["That was practice. From here on your answers count."], "Begin");
      if (done > 0 && done % state.break_after === 0) await pause(source, position, state.total);
      paused = position;
    }
    const { trial, images } = await at(position);
    if (position === next && position + 1 < state.total) at(position + 1).catch(() => delete due[position + 1]);
    const told_ = position < state.practice
      ? `Practice ${position + 1} of ${state.practice}`
      : `${position - state.practice + 1} of ${state.total - state.practice}`;
    const row = await ask(trial, images, { told: told_, back: position === next && position > 0 });
    if (row === null) {
      await source.settled();
      position = next - 1;
      delete due[position];
      continue;
    }
    source.answer(row);
    delete due[position];
    next = Math.max(next, position + 1);
    position = next;
  }
  await source.settled();
}

async function pause(source, done, total) {
  await source.settled();
  await told("Time for a break", [`${done} of ${total} are done, and all of them are kept. Look into the distance for a while, and go on when you like.`], "Go on");
}

function foot(source, slot) {
  const button = element("button", { type: "button" }, "Save the file of my answers so far");
  button.addEventListener("click", () => source.file());
  const lines = [element("p", {}, `Your number in this study: ${slot}`), ...(source.file ? [button] : [])];
  document.getElementById("foot").replaceChildren(...lines);
}

async function run() {
  const source = window.STUDY ? new Local() : new Remote();
  try {
    await source.begin();
    const state = await source.state();
    document.title = state.title;
    foot(source, state.slot);
    if (!state.consent) {
      await asked(state);
      await source.consent();
      await told("How to answer", state.texts.instructions, "Begin");
    } else if (state.next < state.total) {
      await source.consent();                                  // the device may be another one now
    }
    await trials(source, state);
    page(element("h1", {}, "Thank you"), ...paragraphs([source.file
      ? "Save the file of your answers with the button below, and send it to whoever gave you this folder."
      : "All your answers are kept. You may close this page."]));
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    page(element("h1", {}, "This needs your own link"), ...paragraphs(["Please open the link that you were given."]));
  }
}
run();
