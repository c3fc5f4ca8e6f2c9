"use strict";
const drop = document.getElementById("drop");
const input = document.getElementById("files");
const results = document.getElementById("results");
const mostBytes = Number(drop.dataset.mostBytes);
const waiting = [];
const PARALLEL = 4;
let working = 0;

// Text is set by textContent alone, so that names of files and classes are never read as HTML.
// All labels of a model that gives any number of them, else the most probable class.
function heading(found) {
  if (!found.labels) return found.label;
  return found.labels.map((each) => each.label).join(", ") || "No label";
}

function element(kind, text, className) {
  const made = document.createElement(kind);
  if (text) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function percent(probability) {
  return `${(100 * probability).toFixed(1)} %`;
}

function bar(each) {
  const row = element("div", "", "bar");
  const filled = element("i");
  filled.style.width = `${100 * each.probability}%`;
  row.append(filled, element("span", each.label), element("span", percent(each.probability)));
  return row;
}

function show(place, found) {
  place.replaceChildren();
  if (found.error) {
    place.append(element("h2", "Not labelled"), element("p", found.error, "error"));
  } else {
    place.append(element("h2", heading(found)), ...found.top.map(bar));
  }
  place.append(element("div", found.name, "name"));
}

async function ask(file) {
  if (file.size > mostBytes) {
    return {name: file.name, error: `the file has more than ${mostBytes / 2 ** 20} MiB`};
  }
  const form = new FormData();
  form.append("images", file);
  for (;;) {
    const reply = await fetch("predict", {method: "POST", body: form});
    if (reply.status === 503) {
      await new Promise((resume) => setTimeout(resume, 1000));
      continue;
    }
    const found = await reply.json();
    return found.images ? found.images[0] : {name: file.name, error: found.detail};
  }
}

async function work() {
  if (working >= PARALLEL || !waiting.length) return;
  working += 1;
  const {file, place} = waiting.shift();
  try {
    show(place, await ask(file));
  } catch (error) {
    show(place, {name: file.name, error: "the server does not answer; is it still running?"});
  }
  working -= 1;
  work();
}

function add(files) {
  for (const file of files) {
    const row = element("li");
    const picture = element("img");
    picture.alt = "";
    picture.src = URL.createObjectURL(file);
    picture.onload = () => URL.revokeObjectURL(picture.src);
    picture.onerror = () => { picture.style.visibility = "hidden"; };  // a format that the browser does not show
    const place = element("div");
    place.append(element("h2", "…"), element("div", file.name, "name"));
    row.append(picture, place);
    results.prepend(row);
    waiting.push({file, place});
    work();
  }
}

input.addEventListener("change", () => {
  add(input.files);
  input.value = "";
});
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", name === "dragover");
    if (name === "drop") add(event.dataTransfer.files);
  });
}
