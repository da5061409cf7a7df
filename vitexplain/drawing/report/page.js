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
const top1 = (image) => image.top[0] ?? { name: "no categories", probability: 0 };
const pixelsOf = (image) => JSON.parse($(`images-${image.number}`).textContent);
const describe = (map) =>
  map.category ? `${map.category.name}, ${percent(map.category.probability)}` : "every category";
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
  const { name, probability } = top1(image);
  const first = make("span", "first", make("span", "", name), make("span", "", percent(probability)));
  const text = make("span", "caption", first, make("span", "name", image.name));
  const button = make("button", "", make("span", "frame"), text);
  button.type = "button";
  button.title = image.name;
  button.ariaLabel = `${image.name}: ${name}, ${percent(probability)}. Open large view`;
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
    const { image } = target;
    const number = Math.max(0, image.maps.findIndex((map) => map.best));
    const frame = drawn(image, pixelsOf(image), { ...image.maps[number], number }, "");
    target.querySelector(".frame").append(frame);
  }
}, { rootMargin: "400px" });
cards.forEach((card) => near.observe(card));

let shown = images;

function list() {
  const wanted = $("search").value.toLowerCase();
  const category = $("category").value;
  shown = images.filter((image) =>
    image.name.toLowerCase().includes(wanted) &&
    (category === "" || String(top1(image).index) === category));
  const direction = $("sort").value === "least" ? -1 : 1;
  if ($("sort").value !== "name")
    shown.sort((a, b) => direction * (top1(b).probability - top1(a).probability));
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
  $("name").textContent = image.name;
  const figures = [make("figure", "", drawn(image, pixels, null, `input: ${image.name}`),
    make("figcaption", "", "input"))];
  const several = new Set(image.maps.map((map) => map.method)).size > 1;
  image.maps.forEach((map, number) => {
    const link = make("a", "", "overlay");
    link.href = map.overlay;
    const what = several ? `${map.method}: ${describe(map)}` : describe(map);
    const text = make("figcaption", "", `${what} · `, link);
    if (map.faithfulness !== null) text.append(` · faithfulness ${map.faithfulness.toFixed(3)}`);
    if (map.best) text.append(" · ", make("strong", "", "the most faithful"));
    const alternative = `map of ${image.name} for ${describe(map)}, ${map.method}`;
    const figure = make("figure", map.best ? "best" : "",
      drawn(image, pixels, { ...map, number }, alternative), text);
    figures.push(figure);
  });
  $("maps").replaceChildren(...figures);
  $("numbers").replaceChildren(
    table("most likely categories", image.top.map((c) => [`${c.index} ${c.name}`, percent(c.probability)])),
    table("how it was made", image.facts));
  $("previous").disabled = place === 0;
  $("next").disabled = place === shown.length - 1;
  if (!$("large").open) $("large").showModal();
  $("large").scrollTop = 0;
}

function table(title, rows) {
  const caption = make("caption", "", title);
  const lines = rows.map(([name, value]) => {
    const head = make("th", "", name);
    head.scope = "row";
    return make("tr", "", head, make("td", "number", value));
  });
  return make("table", "", caption, ...lines);
}

$("previous").addEventListener("click", () => open(current - 1));
$("next").addEventListener("click", () => open(current + 1));
$("close").addEventListener("click", () => $("large").close());
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
categories();
list();
