"use strict";
// Texts come from file and category names: they only ever become text nodes and attributes.
const $ = (id) => document.getElementById(id);
const make = (tag, className, ...inside) => {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...inside);
  return element;
};
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const images = [...document.querySelectorAll("script.about")].map((script, number) => ({
  ...JSON.parse(script.textContent),
  number,
}));
const run = JSON.parse($("run").textContent);
// A category's probability; its output where outputs are values.
const share = ({ probability, output }) =>
  probability !== null ? percent(probability) : output !== undefined ? `output ${output.toPrecision(4)}` : "";
const top1 = (image) => image.top[0] ?? { name: "no categories", probability: null };
const height = ({ probability, output }) => probability ?? output ?? 0;
const pixelsOf = (image) => JSON.parse($(`images-${image.number}`).textContent);
const describe = (map) =>
  map.category
    ? [`${map.category.name}, ${share(map.category)}`, map.against.map((c) => c.name).join("; ")]
        .filter(Boolean).join(" against ")
    : "every category";
// Maps of one kind: the same method and, of several categories, the same rank.
for (const image of images) {
  const ranks = new Map();
  for (const map of image.maps) {
    map.rank = ranks.get(map.method) ?? 0;
    ranks.set(map.method, map.rank + 1);
  }
}
const ranked = new Set(images.flatMap((image) => image.maps.filter((map) => map.rank).map((map) => map.method)));
const kind = ({ method, rank }) => (ranked.has(method) ? `${method}, category ${rank + 1}` : method);
const kinds = [...new Set(images.flatMap((image) => image.maps.map(kind)))];
const HIGHEST = "highest faithfulness";
if (images.some((image) => image.maps.some((map) => map.faithfulness !== null))) kinds.unshift(HIGHEST);

// The place of the map that the grid shows of an image.
function chosen(image) {
  const wanted = $("map").value;
  if (wanted !== HIGHEST) return Math.max(0, image.maps.findIndex((map) => kind(map) === wanted));
  const values = image.maps.map((map) => map.faithfulness ?? -Infinity);
  return values.indexOf(Math.max(...values));
}

function scale() {
  const [low, high] = run.scale.words;
  return [low, img(run.scale.bar, ""), high];
}

// The image with one map over it (or none), drawn by the browser: the slider only sets opacity.
function drawn(image, pixels, map, alternative) {
  const [across, down] = image.size;
  const frame = make("span", across > 1.2 * down ? "image wide" : "image high");
  frame.style.aspectRatio = `${across} / ${down}`;
  if (!pixels.thumbnail) frame.append(make("span", "gone", "image not found"));
  else frame.append(img(pixels.thumbnail, alternative));
  if (map) {
    const seen = make("span", "seen", img(pixels.heat[map.number], ""));
    const [left, top, width, height] = map.place;
    Object.assign(seen.style, {
      left: `${left}%`, top: `${top}%`, width: `${width}%`, height: `${height}%`,
    });
    frame.append(seen);
  }
  return frame;
}

function img(data, alternative) {
  const element = make("img");
  element.alt = alternative;
  element.decoding = "async";
  element.src = `data:image/webp;base64,${data}`;
  return element;
}

const cards = images.map((image) => {
  const first = top1(image);
  const text = make("span", "caption",
    make("span", "first", make("span", "category", first.name), make("span", "share", share(first))),
    make("span", "name", image.name));
  if (kinds.length > 1) text.append(make("span", "which"));
  const button = make("button", "", make("span", "frame"), text);
  button.type = "button";
  button.title = image.name;
  button.ariaLabel = `${[`${image.name}: ${first.name}`, share(first)].filter(Boolean).join(", ")}. Open large view`;
  button.tabIndex = -1;
  button.addEventListener("click", (event) => {
    // a finger can't hover: on the image it switches, below it opens
    if (event.pointerType === "touch" && event.target.closest(".frame"))
      button.classList.toggle("input");
    else open(shown.indexOf(image));
  });
  const card = make("li", "card", button);
  card.image = image;
  return card;
});

// Only cards near the window get their images.
const near = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    near.unobserve(target);
    show(target);
  }
}, { rootMargin: "400px" });

function show(card) {
  const { image } = card;
  const number = chosen(image);
  const map = image.maps[number];
  card.querySelector(".frame").replaceChildren(drawn(image, pixelsOf(image), { ...map, number }, ""));
  const said = !map.against.length && (!map.category || map.category.index === top1(image).index); // on the card already
  card.querySelector(".which")?.replaceChildren(said ? kind(map) : `${kind(map)}: ${describe(map)}`);
}

// On paper there is no window: all cards get their images.
addEventListener("beforeprint", () => shown.forEach((image) => show(cards[image.number])));

let shown = images;

function list() {
  const wanted = $("search").value.toLowerCase();
  const category = $("category").value;
  shown = images.filter((image) =>
    [image.name, ...image.top.map((c) => c.name)].some((name) => name.toLowerCase().includes(wanted)) &&
    (category === "" || String(top1(image).index) === category));
  const direction = $("sort").value === "least" ? -1 : 1;
  if ($("sort").value !== "name")
    shown.sort((a, b) => direction * (height(top1(b)) - height(top1(a))));
  $("cards").replaceChildren(...shown.map((image) => cards[image.number]));
  $("count").textContent = `${shown.length} of ${images.length} images`;
  cards.forEach((card) => { card.firstChild.tabIndex = -1; });
  if (shown.length) cards[shown[0].number].firstChild.tabIndex = 0;
}

function categories() {
  const counts = new Map();
  for (const image of images) {
    const { index, name } = top1(image);
    if (index === undefined) continue;
    counts.set(index, { name, count: (counts.get(index)?.count ?? 0) + 1 });
  }
  const sorted = [...counts].sort(([, a], [, b]) => a.name.localeCompare(b.name));
  for (const [index, { name, count }] of sorted) $("category").append(new Option(`${name} (${count})`, index));
}

// One tab stop for the whole grid; arrows move within it.
$("cards").addEventListener("keydown", (event) => {
  const buttons = shown.map((image) => cards[image.number].firstChild);
  const here = buttons.indexOf(event.target);
  const line = buttons[0]?.parentElement.offsetTop;
  const columns = buttons.filter((button) => button.parentElement.offsetTop === line).length;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
  const to = event.key === "Home" ? 0 : event.key === "End" ? buttons.length - 1 : here + step;
  if (here < 0 || Number.isNaN(to)) return;
  event.preventDefault();
  if (buttons[to]) buttons[to].focus();
});
$("cards").addEventListener("focusin", (event) => {
  for (const card of $("cards").children) card.firstChild.tabIndex = -1;
  event.target.tabIndex = 0;
});

let current = -1;

function open(place) {
  if (!shown[place]) return;
  current = place;
  const image = shown[place];
  const pixels = pixelsOf(image);
  const file = make("a", "", image.name);
  file.href = image.file;
  $("name").replaceChildren(file);
  const figures = [make("figure", "", drawn(image, pixels, null, `input: ${image.name}`),
    make("figcaption", "", "input"))];
  image.maps.forEach((map, number) => {
    const link = make("a", "", "overlay");
    link.href = map.overlay;
    const text = make("figcaption", "", `${map.method}: ${describe(map)} · `, link);
    if (map.faithfulness !== null) text.append(` · faithfulness ${map.faithfulness.toFixed(2)}`);
    if (map.best) text.append(" · ", make("strong", "", "the most faithful"));
    const alternative = `map of ${image.name} for ${describe(map)}, ${map.method}`;
    const figure = make("figure", map.best ? "best" : "",
      drawn(image, pixels, { ...map, number }, alternative), text);
    figures.push(figure);
  });
  $("maps").replaceChildren(...figures);
  $("maps").classList.toggle("many", figures.length > 3);
  $("numbers").replaceChildren(
    table("most likely categories", image.top.map((c) => [`${c.index} ${c.name}`, share(c)])),
    table("how it was made", image.facts),
    make("details", "", make("summary", "", "options and times"), table("", image.details)));
  $("previous").disabled = place === 0;
  $("next").disabled = place === shown.length - 1;
  if (!$("large").open) $("large").showModal();
  $("large").scrollTop = 0;
  // what had the focus may have been replaced: the keys must go on working
  if (!$("large").contains(document.activeElement)) $("close").focus();
}

function table(title, rows) {
  const caption = title ? [make("caption", "", title)] : [];
  const lines = rows.map(([name, value]) => {
    const head = make("th", "", name);
    head.scope = "row";
    return make("tr", "", head, make("td", "number", value));
  });
  return make("table", "", ...caption, ...lines);
}

$("previous").addEventListener("click", () => open(current - 1));
$("next").addEventListener("click", () => open(current + 1));
$("close").addEventListener("click", () => $("large").close());
$("large").addEventListener("click", (event) => {
  if (event.target === $("large")) $("large").close(); // beside what is in it
});
$("large").addEventListener("keydown", (event) => {
  if (event.target.type === "range") return;
  const to = {
    ArrowLeft: current - 1, ArrowRight: current + 1, Home: 0, End: shown.length - 1,
  }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  open(to);
});
$("large").addEventListener("close", () => cards[shown[current].number].firstChild.focus());

for (const slider of document.querySelectorAll("input[type=range]"))
  slider.addEventListener("input", () => {
    document.documentElement.style.setProperty("--blend", slider.value / 100);
    for (const other of document.querySelectorAll("input[type=range]")) other.value = slider.value;
  });
for (const id of ["search", "category", "sort"]) $(id).addEventListener("input", list);
$("map").addEventListener("input", () => cards.forEach((card) => near.observe(card)));

// Focus must not move below the header, which stays where it is.
new ResizeObserver(([{ target }]) => {
  const stays = getComputedStyle(target).position === "sticky";
  document.documentElement.style.scrollPaddingTop = stays ? `${target.offsetHeight + 8}px` : "0";
}).observe(document.querySelector("header"));

$("made").textContent = run.made;
for (const name of kinds) $("map").append(new Option(name));
$("which").hidden = kinds.length < 2;
for (const place of document.querySelectorAll(".scale")) place.append(...scale());
$("failed").hidden = !run.failures.length;
$("failed").firstChild.textContent = `${run.failures.length} images could not be explained`;
$("failed").append(table("", run.failures));
cards.forEach((card) => near.observe(card));
categories();
list();
