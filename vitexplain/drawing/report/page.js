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
const judged = images.filter((image) => image.truth);
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
// Of what is known to be right or wrong, by what it explains.
for (const image of judged)
  for (const map of image.maps.filter((map) => map.category))
    map.role = map.against.length ? "true against predicted"
      : map.category.index === top1(image).index ? "predicted" : "true category";
const ranked = new Set(images.flatMap((image) => image.maps.filter((map) => map.rank).map((map) => map.method)));
const kind = ({ method, rank, role }) =>
  role ? `${method}, ${role}` : ranked.has(method) ? `${method}, category ${rank + 1}` : method;
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
  return run.scales.map(({ bar, words: [low, high] }) => make("span", "bar-of-colours", low, img(bar, ""), high));
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
  if (image.correct === false) text.append(make("span", "wrong", `wrong: it is ${image.truth.name}`));
  if (image.correct) text.append(make("span", "right", "right"));
  if (kinds.length > 1) text.append(make("span", "which"));
  const button = make("button", "", make("span", "frame"), text);
  button.type = "button";
  button.title = image.name;
  const verdict = image.correct === false ? `wrong, it is ${image.truth.name}` : image.correct ? "right" : "";
  button.ariaLabel = `${[`${image.name}: ${first.name}`, share(first), verdict].filter(Boolean).join(", ")}. Open large view`;
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
    [image.name, image.truth?.name ?? "", ...image.top.map((c) => c.name)]
      .some((name) => name.toLowerCase().includes(wanted)) &&
    (category === "" || String(top1(image).index) === category) &&
    ($("truth").value === "" || String(image.truth?.index) === $("truth").value) &&
    ($("correct").value === "" || image.correct === ($("correct").value === "right")));
  const direction = $("sort").value === "least" ? -1 : 1;
  if ($("sort").value !== "name")
    shown.sort((a, b) => direction * (height(top1(b)) - height(top1(a))));
  if ($("sort").value === "mistakes") // a stable sort: the most confident ones first
    shown.sort((a, b) => (a.correct ?? true) - (b.correct ?? true));
  $("cards").replaceChildren(...shown.map((image) => cards[image.number]));
  $("count").textContent = `${shown.length} of ${images.length} images`;
  cards.forEach((card) => { card.firstChild.tabIndex = -1; });
  if (shown.length) cards[shown[0].number].firstChild.tabIndex = 0;
}

// The categories of a kind, by name, with how many images have each.
function counted(categoryOf) {
  const counts = new Map();
  for (const image of images) {
    const { index, name } = categoryOf(image) ?? {};
    if (index === undefined) continue;
    counts.set(index, { index, name, count: (counts.get(index)?.count ?? 0) + 1 });
  }
  return [...counts.values()].sort((a, b) => a.name.localeCompare(b.name));
}

function categories(select, categoryOf) {
  for (const { index, name, count } of counted(categoryOf)) select.append(new Option(`${name} (${count})`, index));
}

// How often each category was predicted for each true one; a number shows its images.
const MOST = 20; // categories of a matrix; of more, the most frequent confusions are listed
function confusion() {
  const pairs = new Map();
  for (const image of judged) {
    const key = `${image.truth.index} ${top1(image).index}`;
    pairs.set(key, [...(pairs.get(key) ?? []), image]);
  }
  const link = (truth, predicted, text) => {
    const button = make("button", "", text);
    button.type = "button";
    const count = pairs.get(`${truth.index} ${predicted.index}`).length;
    button.ariaLabel = `${count} of ${truth.name} predicted as ${predicted.name}: show them`;
    button.addEventListener("click", () => {
      $("truth").value = truth.index;
      $("category").value = predicted.index;
      $("correct").value = $("search").value = "";
      list();
      $("cards").scrollIntoView();
      cards[shown[0].number].firstChild.focus();
    });
    return button;
  };
  const all = [...new Map([...judged.map((image) => image.truth), ...judged.map(top1)]
    .map((category) => [category.index, category])).values()].sort((a, b) => a.name.localeCompare(b.name));
  if (all.length > MOST) {
    const frequent = [...pairs.values()].filter(([image]) => !image.correct)
      .sort((a, b) => b.length - a.length).slice(0, MOST);
    const rows = frequent.map((found) => {
      const [{ truth }, predicted] = [found[0], top1(found[0])];
      return [`${truth.name}, taken for ${predicted.name}`, link(truth, predicted, `${found.length}`)];
    });
    return table("Most frequent confusions", rows);
  }
  const short = ({ name }) => name.split(",")[0]; // the first synonym, as on overlays
  const heads = all.map((category) => {
    const th = make("th", "", short(category));
    th.scope = "col";
    return th;
  });
  const head = make("tr", "", make("td", "", "true ↓ predicted →"), ...heads);
  const lines = all.map((truth) => {
    const th = make("th", "", short(truth));
    th.scope = "row";
    return make("tr", "", th, ...all.map((predicted) => {
      const found = pairs.get(`${truth.index} ${predicted.index}`);
      const cell = make("td", truth.index === predicted.index ? "number on" : "number");
      if (found) cell.append(link(truth, predicted, `${found.length}`));
      return cell;
    }));
  });
  return make("table", "matrix", head, ...lines);
}

function accuracy() {
  for (const label of document.querySelectorAll(".judged")) label.hidden = !judged.length;
  $("accuracy").hidden = $("confusion").hidden = !judged.length;
  if (!judged.length) return;
  const { right, of, value, interval } = run.accuracy;
  $("accuracy").textContent = `${right} of ${of} predictions are right: top-1 ${value.toFixed(3)} ` +
    `(95 % interval ${interval.map((end) => end.toFixed(3)).join(" to ")})`;
  $("sort").prepend(new Option("mistakes first", "mistakes"));
  $("sort").value = "mistakes";
  const scrolls = make("div", "scrolls", confusion());
  scrolls.tabIndex = 0; // the keyboard can move it, too
  $("confusion").append(scrolls);
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
    if (map.answers) text.append(make("span", "answers", map.answers));
    const alternative = `map of ${image.name} for ${describe(map)}, ${map.method}`;
    const figure = make("figure", map.best ? "best" : "",
      drawn(image, pixels, { ...map, number }, alternative), text);
    figures.push(figure);
  });
  $("maps").replaceChildren(...figures);
  $("maps").classList.toggle("many", figures.length > 3);
  $("unbeaten").textContent = image.unbeaten;
  $("unbeaten").hidden = !image.unbeaten;
  $("numbers").replaceChildren(
    ...(image.lookAt.length ? [table("which map to look at", image.lookAt)] : []),
    ...(image.truth ? [table("true category", [[`${image.truth.index} ${image.truth.name}`,
      image.correct ? "predicted" : "not predicted"]])] : []),
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
for (const id of ["search", "category", "truth", "correct", "sort"]) $(id).addEventListener("input", list);
$("map").addEventListener("input", () => cards.forEach((card) => near.observe(card)));

// Focus must not move below the header, which stays where it is; in a low window it does not.
function padding() {
  const header = document.querySelector("header");
  const stays = getComputedStyle(header).position === "sticky";
  document.documentElement.style.scrollPaddingTop = stays ? `${header.offsetHeight + 8}px` : "0";
}
new ResizeObserver(padding).observe(document.querySelector("header"));
addEventListener("resize", padding);

$("made").textContent = run.made;
for (const name of kinds) $("map").append(new Option(name));
$("which").hidden = kinds.length < 2;
for (const place of document.querySelectorAll(".scale")) place.append(...scale());
$("failed").hidden = !run.failures.length;
$("failed").firstChild.textContent = `${run.failures.length} images could not be explained`;
$("failed").append(table("", run.failures));
cards.forEach((card) => near.observe(card));
categories($("category"), (image) => image.top[0]);
categories($("truth"), (image) => image.truth);
accuracy();
list();
