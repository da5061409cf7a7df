// The page: one state, drawn anew after each change.
// Texts come from file and category names: they only ever become text nodes and attributes.

import { drawPredictions } from "./chart.js";
import { Attention } from "./model.js";
import { bytes, float32, largest } from "./numbers.js";
import { colourBar, drawMap, drawVotes, levelOf, OTHERS, VOTES } from "./picture.js";
import { TEXTS } from "./texts.js";
import { stepsOf } from "./tour.js";

const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const attention = new Attention(data);
const [rows, columns] = data.grid;
const tables = {
  colours: bytes(data.colours),
  sides: { colours: bytes(data.sides.colours), weights: float32(data.sides.weights) },
};
for (const map of data.maps) map.values = float32(map.mask);
for (const block of data.norms) block.values = float32(block.patches);

const last = attention.blocks.length - 1;
const state = {
  language: navigator.language?.startsWith("fr") ? "fr" : "en",
  view: "attention", block: last, head: null, token: null, kept: false, from: false,
  fusion: data.rollout.fusion, ratio: data.rollout.ratio, start: data.rollout.start,
  map: 0, blend: 65, grid: true, smooth: false, step: null, guess: null,
};
const words = () => TEXTS[state.language];
const views = ["attention", "rollout", ...(data.maps.length ? ["maps"] : []), "norms",
  ...(data.predictions.length ? ["votes"] : [])];

const written = (value, format) => new Intl.NumberFormat(state.language, format).format(value);
const number = (value, digits) => written(value, { maximumSignificantDigits: digits });
const percent = (share) => written(share, { style: "percent", maximumFractionDigits: 1 });
const decimal = (value) => written(value, { minimumFractionDigits: 2, maximumFractionDigits: 2 });
const share = ({ probability, output }) => probability !== null ? percent(probability) : number(output, 4);
const short = (name) => name.split(",")[0];
const category = ({ name }) => short(name);
const method = (map) => words().methods[map.method] ?? map.title;
const make = (tag, className, ...inside) => {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...inside);
  return element;
};

// Row and column of a patch's token.
function placeOf(token) {
  const place = token - attention.prefix;
  return [Math.floor(place / columns), place % columns];
}

// What a token is called.
function tokenName(token) {
  if (token === null) return words().read;
  if (token < attention.prefix) {
    const [kind, count] = data.prefix[token].split(" ");
    const name = words().token[kind];
    return typeof name === "function" ? name(count) : name;
  }
  const [row, column] = placeOf(token);
  return words().patch(row + 1, column + 1);
}

// The values of what is shown: of the patches, and of the prefix tokens where they have some.
function shown() {
  const { view, token, block } = state;
  if (view === "maps") {
    const map = data.maps[state.map];
    const range = map.signed ? { low: -1, high: 1 } : { low: 0, high: 1 };
    return { patches: map.values, grid: map.grid, signed: map.signed, ...range };
  }
  if (view === "norms") {
    const { values, prefix } = data.norms[block];
    const all = [...values, ...prefix];
    return { patches: values, prefix, grid: [rows, columns], low: Math.min(...all), high: Math.max(...all) };
  }
  if (view === "votes") {
    const { votes, grid } = predictionAfter(block);
    return { votes, grid };
  }
  const values = view === "rollout" ? attention.rollout(token, state) : attention.ofToken(token, { ...state, from: state.from && token !== null });
  const patches = values.slice(attention.prefix);
  return { patches, prefix: [...values.slice(0, attention.prefix)], grid: [rows, columns], low: 0, high: largest(patches) };
}

const predictionAfter = (block) => data.predictions.findLast((each) => each.block <= block) ?? data.predictions[0];

function title() {
  const { view, token, block, from } = state;
  const { saying } = words();
  const name = tokenName(token);
  if (view === "maps") {
    const map = data.maps[state.map];
    if (!map.category) return `${method(map)}, ${words().everyCategory}`;
    const rivals = map.against.map(category).join(", ");
    return `${method(map)}, ${category(map.category)} (${share(map.category)})${rivals && ` ${words().against} ${rivals}`}`;
  }
  if (view === "norms") return saying.norms(block + 1);
  if (view === "votes") return saying.votes(predictionAfter(block).block + 1);
  if (view === "rollout") return token === null ? saying.rolloutReads : saying.rollout(name);
  if (token === null) return saying.reads(block + 1);
  return (from ? saying.from : saying.attention)(name, block + 1);
}

let now; // what is shown

function draw() {
  now = shown();
  const votes = now.votes && drawnVotes();
  if (!now.votes) drawMap($("map"), now.patches, now.grid, now, tables);
  $("map").values = now.patches; // for the console
  $("map").style.opacity = state.blend / 100;
  $("map").className = state.smooth && !now.votes ? "smooth" : "";
  $("saying").textContent = title();
  const bar = !now.votes;
  for (const id of ["bar", "low", "high"]) $(id).hidden = !bar;
  if (bar) {
    colourBar($("bar"), now.signed, tables);
    $("low").textContent = number(now.low, 3);
    $("high").textContent = number(now.high, 3);
  }
  $("legend").replaceChildren(...(votes ?? []));
  drawGrid();
  drawPrefix();
  drawControls();
  drawChosen();
  drawGallery();
  if (data.predictions.length) drawAfter();
}

function drawnVotes() {
  const { votes, names } = predictionAfter(state.block);
  const counts = new Map();
  for (const vote of votes) counts.set(vote, (counts.get(vote) ?? 0) + 1);
  const order = [...counts.keys()].sort((one, other) => counts.get(other) - counts.get(one)).slice(0, VOTES.length);
  drawVotes($("map"), votes, now.grid, order);
  const entry = (colour, name, count) => {
    const square = make("i");
    square.style.background = colour;
    return make("li", "", square, `${name}: ${count}`);
  };
  const rest = votes.length - order.reduce((total, each) => total + counts.get(each), 0);
  return [...order.map((each, place) => entry(VOTES[place], short(names[each]), counts.get(each))),
    ...(rest ? [entry(OTHERS, words().others, rest)] : [])];
}

function drawGrid() {
  $("grid").hidden = !state.grid;
  const line = "#fff6 1px, transparent 1px";
  $("grid").style.backgroundImage = `linear-gradient(to right, ${line}), linear-gradient(to bottom, ${line})`;
  const { width, height } = $("stage").getBoundingClientRect();
  $("grid").style.backgroundSize = `${width / now.grid[1]}px ${height / now.grid[0]}px`;
}

function drawPrefix() {
  const buttons = $("prefix").children;
  [null, ...data.prefix.keys()].forEach((token, place) => {
    const button = buttons[place];
    const value = token === null ? undefined : now.prefix?.[token];
    const [square, name, text] = button.children;
    name.textContent = token === null ? words().all : tokenName(token);
    text.textContent = value === undefined ? "" : number(value, 3);
    square.hidden = value === undefined;
    if (value !== undefined) {
      const level = levelOf(value, now.low, now.high);
      square.style.background = `rgb(${tables.colours.slice(3 * level, 3 * level + 3).join(" ")})`;
    }
    button.ariaPressed = String(state.token === token);
  });
}

function drawControls() {
  for (const element of document.querySelectorAll("[data-for]"))
    element.hidden = !element.dataset.for.split(" ").includes(state.view);
  const heads = attention.heads(state.block);
  $("head").closest("label").hidden ||= !heads;
  $("head").max = heads - 1;
  $("categories").hidden ||= $("category").length < 2;
  const texts = {
    block: state.block + 1, head: state.head === null ? words().fused : state.head + 1,
    ratio: decimal(state.ratio), start: state.start + 1, blend: percent(state.blend / 100),
  };
  for (const [id, text] of Object.entries(texts)) {
    $(`${id}-value`).textContent = text;
    $(id).value = id === "head" ? state.head ?? -1 : state[id];
    $(id).setAttribute("aria-valuetext", text);
  }
  $("fusion").value = state.fusion;
  $("from").value = state.from ? "from" : "";
  $("from").disabled = state.token === null;
  $("lines").checked = state.grid;
  $("smooth").checked = state.smooth;
  for (const radio of document.querySelectorAll("#views input")) radio.checked = radio.value === state.view;
}

// The patch that is pointed at or was chosen, and its value.
function drawChosen(pointed = null) {
  const token = pointed ?? state.token;
  const isPatch = token !== null && token >= attention.prefix;
  $("pointed").hidden = !isPatch;
  $("value").textContent = token === null ? "" : words().value(tokenName(token), said(token));
  if (!isPatch) return;
  const [row, column] = placeOf(token);
  Object.assign($("pointed").style, {
    left: `${(100 * column) / columns}%`, top: `${(100 * row) / rows}%`,
    width: `${100 / columns}%`, height: `${100 / rows}%`,
  });
  $("pointed").className = state.kept && token === state.token ? "kept" : "";
}

// The value of what is shown at a token. Maps may be finer or coarser than the grid of tokens.
function said(token) {
  if (token < attention.prefix) return now.prefix ? number(now.prefix[token], 3) : "–";
  const [down, across] = placeOf(token).map((edge) => edge + 0.5);
  const there = Math.floor((down / rows) * now.grid[0]) * now.grid[1] + Math.floor((across / columns) * now.grid[1]);
  if (!now.votes) return number(now.patches[there], 3);
  const { names, shares } = predictionAfter(state.block);
  return `${short(names[now.votes[there]])}, ${percent(shares[there])}`;
}

function drawGallery() {
  if (state.view !== "maps") return;
  const wanted = data.maps[state.map].category?.index ?? Number($("category").value);
  if (data.maps[state.map].category) $("category").value = wanted;
  const listed = data.maps.filter((map) => !map.category || map.category.index === wanted);
  $("gallery").replaceChildren(...listed.map((map) => {
    const canvas = make("canvas");
    drawMap(canvas, map.values, map.grid, { low: map.signed ? -1 : 0, high: 1, signed: map.signed }, tables);
    const image = make("img");
    image.src = $("picture").src;
    image.alt = "";
    const small = make("span", "small", image, canvas);
    small.style.aspectRatio = data.ratio;
    const button = make("button", "", small, method(map));
    if (map.faithfulness !== null) button.append(make("span", "", `${words().faithfulness} ${decimal(map.faithfulness)}`));
    if (map.best) button.append(make("strong", "", words().best));
    button.type = "button";
    button.ariaPressed = String(map === data.maps[state.map]);
    button.addEventListener("click", () => {
      change({ map: data.maps.indexOf(map) });
      $("gallery").querySelector("[aria-pressed=true]").focus();
    });
    return button;
  }));
}

function drawAfter() {
  const { block, top } = predictionAfter(state.block);
  drawPredictions($("chart"), data.predictions, block, percent);
  const list = top.map((each) => `${category(each)} ${share(each)}`).join(", ");
  $("after").textContent = `${words().after(block + 1, list)}. ${words().stays(data.stays + 1)}`;
}

function drawWords() {
  document.documentElement.lang = state.language;
  $("language").value = state.language;
  for (const element of document.querySelectorAll("[data-text]"))
    element.textContent = words()[element.dataset.text];
  $("stage").ariaLabel = words().stage;
  $("prefix").ariaLabel = words().tokens;
  for (const label of document.querySelectorAll("#views label span"))
    label.textContent = words()[label.dataset.view];
  const { heads, fused, side } = data.storage;
  const bits = heads || fused;
  const lines = [
    side > 1 ? words().coarse(side, rows, columns) : words().exact,
    words().stored(bits, written(1 / (2 ** bits - 1), { style: "percent", maximumSignificantDigits: 2 })),
    ...(heads ? [] : [words().onlyFused]),
    words().counted,
    ...(data.maps.some((map) => map.faithfulness !== null) ? [words().measured] : []),
  ];
  $("limits").replaceChildren(...lines.map((line) => make("li", "", line)));
}

function change(changes) {
  Object.assign(state, changes);
  const heads = attention.heads(state.block);
  if (state.head !== null && state.head >= heads) state.head = null;
  if ("language" in changes) drawWords();
  draw();
  if (state.step !== null && ("step" in changes || "guess" in changes || "language" in changes)) drawTour();
  $("tour").hidden = state.step === null;
}

// The tour

const look = { percent, decimal, category, method, count: (value) => number(value, 2) };
const steps = stepsOf(data, attention, look);

function drawTour() {
  const step = steps[state.step];
  const text = words().steps[step.name];
  const facts = step.facts();
  $("progress").textContent = words().step(state.step + 1, steps.length);
  $("step").textContent = text.title;
  $("lesson").textContent = text.text(facts);
  $("question").textContent = text.ask;
  const guessed = state.guess !== null;
  $("choices").replaceChildren(...text.choices(facts).map((choice, place) => {
    const button = make("button", "", choice);
    button.type = "button";
    button.ariaPressed = String(state.guess === place);
    button.addEventListener("click", () => {
      change({ guess: place, ...step.after });
      $("choices").children[place].focus();
    });
    return button;
  }));
  const verdict = state.guess === step.right(facts) ? words().right : words().wrong;
  $("answer").textContent = guessed ? `${verdict} ${text.answer(facts)}` : "";
  $("back").disabled = state.step === 0;
  $("next").hidden = state.step === steps.length - 1;
}

function go(step) {
  change({ step, guess: null, kept: false, ...steps[step].before });
  $("step").focus();
}

// What people do

function tokenAt({ clientX, clientY }) {
  const { left, top, width, height } = $("stage").getBoundingClientRect();
  const inside = (share, count) => Math.min(count - 1, Math.max(0, Math.floor(share * count)));
  return attention.prefix + inside((clientY - top) / height, rows) * columns + inside((clientX - left) / width, columns);
}

const follows = () => ["attention", "rollout"].includes(state.view) && state.step === null;

function point(event) {
  const token = tokenAt(event);
  if (follows() && !state.kept) {
    if (token !== state.token) change({ token });
  } else drawChosen(token);
}

function keep(token) {
  const again = state.kept && state.token === token;
  change({ token: again ? null : token, kept: !again });
}

$("stage").addEventListener("pointermove", (event) => {
  if (event.pointerType !== "touch") point(event);
});
$("stage").addEventListener("pointerleave", (event) => {
  if (event.pointerType === "touch") return;
  if (follows() && !state.kept) change({ token: null });
  else drawChosen();
});
$("stage").addEventListener("click", (event) => keep(tokenAt(event)));
$("stage").addEventListener("keydown", (event) => {
  const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  if (event.key === "Escape") change({ token: null, kept: false });
  else if (event.key === "Enter") change({ kept: state.token !== null });
  else if (moves[event.key]) {
    const place = Math.max(0, (state.token ?? -1) - attention.prefix);
    const started = state.token !== null && state.token >= attention.prefix;
    const [down, across] = started ? moves[event.key] : [0, 0];
    const row = Math.min(rows - 1, Math.max(0, Math.floor(place / columns) + down));
    const column = Math.min(columns - 1, Math.max(0, (place % columns) + across));
    change({ token: attention.prefix + row * columns + column, kept: true });
  } else return;
  event.preventDefault();
  $("spoken").textContent = $("value").textContent || tokenName(state.token);
});

for (const id of ["block", "ratio", "start", "blend"])
  $(id).addEventListener("input", () => change({ [id]: Number($(id).value) }));
$("head").addEventListener("input", () => change({ head: Number($("head").value) < 0 ? null : Number($("head").value) }));
$("fusion").addEventListener("change", () => change({ fusion: $("fusion").value }));
$("from").addEventListener("change", () => change({ from: $("from").value === "from" }));
$("lines").addEventListener("change", () => change({ grid: $("lines").checked }));
$("smooth").addEventListener("change", () => change({ smooth: $("smooth").checked }));
$("language").addEventListener("change", () => change({ language: $("language").value }));
$("category").addEventListener("change", () => {
  const { method: name } = data.maps[state.map];
  const wanted = data.maps.filter((map) => map.category?.index === Number($("category").value));
  change({ map: data.maps.indexOf(wanted.find((map) => map.method === name) ?? wanted[0]) });
});
$("begin").addEventListener("click", () => go(0));
$("back").addEventListener("click", () => go(state.step - 1));
$("next").addEventListener("click", () => go(state.step + 1));
$("end").addEventListener("click", () => {
  change({ step: null });
  $("begin").focus();
});
addEventListener("resize", () => drawGrid());

function begin() {
  $("title").textContent = data.name;
  $("model").textContent = `${data.model}${data.top.length ? ` · ${data.top.slice(0, 3).map((each) => `${category(each)} ${share(each)}`).join(" · ")}` : ""}`;
  $("picture").src = `data:image/webp;base64,${data.picture}`;
  $("picture").alt = data.name;
  $("stage").style.aspectRatio = data.ratio;
  $("stage").style.setProperty("--ratio", data.ratio);
  $("block").max = last;
  $("start").max = last;
  $("predictions").hidden = !data.predictions.length;
  for (const view of views) {
    const radio = make("input");
    Object.assign(radio, { type: "radio", name: "view", value: view });
    radio.addEventListener("change", () => change({ view }));
    const text = make("span");
    text.dataset.view = view;
    $("views").append(make("label", "", radio, text));
  }
  for (const token of [null, ...data.prefix.keys()]) {
    const button = make("button", "", make("i"), make("span"), make("span"));
    button.type = "button";
    button.addEventListener("click", () => change({ token, kept: token !== null }));
    $("prefix").append(button);
  }
  const categories = new Map(data.maps.filter((map) => map.category).map((map) => [map.category.index, map.category]));
  for (const [index, each] of categories) {
    const option = make("option", "", `${category(each)} (${share(each)})`);
    option.value = index;
    $("category").append(option);
  }
  drawWords();
  change({});
}

begin();
