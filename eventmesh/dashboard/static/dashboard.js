// Keeps the live part of a page up to date. Without this script, pages work and are loaded again by hand.
"use strict";

// Makes `old` like `fresh` in place: what is equal stays, so that focus and selection stay, too.
function sync(old, fresh) {
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  if (old.nodeType !== Node.ELEMENT_NODE) return;
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
  }
  syncChildren(old, fresh);
}

function syncChildren(old, fresh) {
  const wanted = [...fresh.childNodes];
  wanted.forEach((node, place) => {
    const there = old.childNodes[place];
    if (!there) {
      old.append(node.cloneNode(true));
    } else if (there.nodeName !== node.nodeName || there.id !== node.id) {
      there.replaceWith(node.cloneNode(true));
    } else {
      sync(there, node);
    }
  });
  while (old.childNodes.length > wanted.length) old.lastChild.remove();
}

function keepLive(region) {
  const connection = document.querySelector("[data-connection]");
  const source = new EventSource(region.dataset.events);
  source.onopen = () => { connection.textContent = ""; };
  source.onerror = () => { connection.textContent = "Not live: the dashboard does not answer."; };
  source.onmessage = (event) => {
    const template = document.createElement("template");
    template.innerHTML = JSON.parse(event.data);
    syncChildren(region, template.content);
    region.dataset.number = event.lastEventId;
    if (region.querySelector("[data-finished]")) source.close();
  };
  addEventListener("pagehide", () => source.close());
}

function selectAll(box) {
  box.hidden = false;
  box.querySelector("input").addEventListener("change", (event) => {
    for (const each of document.querySelectorAll('input[name="id"]')) each.checked = event.target.checked;
  });
}

document.querySelectorAll("[data-live]").forEach(keepLive);
document.querySelectorAll("[data-select-all]").forEach(selectAll);
