// Makes the ROC figures answer: legend entries switch attacks on and off, and a figure tells its values where the
// pointer is, or where the arrow keys put it. Without scripts the page says the same, and stands still.
"use strict";
(() => {
  // What scrolls must be reachable by keys, and say what it is; what fits must not be a stop on the way.
  const title = (box) => {
    const caption = box.querySelector("caption") || box.closest("details")?.querySelector("summary");
    for (let at = box; !caption && at; at = at.previousElementSibling || at.parentElement)
      if (/^H[1-4]$/.test(at.tagName)) return at.textContent;
    return caption ? caption.textContent.trim().slice(0, 80) : "Table";
  };
  const reachable = (box) => {
    const scrolls = box.scrollWidth > box.clientWidth + 1 || box.scrollHeight > box.clientHeight + 1;
    const set = { tabindex: "0", role: "group", "aria-label": `Scrolls: ${title(box)}` };
    for (const name in set) scrolls ? box.setAttribute(name, set[name]) : box.removeAttribute(name);
  };
  const watch = new ResizeObserver((seen) => seen.forEach((one) => reachable(one.target)));
  document.querySelectorAll(".scroll, .gallery blockquote").forEach((box) => watch.observe(box));

  const percent = (x) => (0.9995 <= x && x < 1 ? ">99.9%" : Number((100 * x).toPrecision(x < 0.001 ? 2 : 3)) + "%");
  const hidden = new Set();

  for (const button of document.querySelectorAll(".legend button")) {
    button.disabled = false;
    button.addEventListener("click", () => {
      const order = button.dataset.attack;
      const off = !hidden.has(order);
      off ? hidden.add(order) : hidden.delete(order);
      for (const same of document.querySelectorAll(`.legend button[data-attack="${order}"]`))
        same.setAttribute("aria-pressed", String(!off));
      for (const part of document.querySelectorAll(`svg [data-attack="${order}"]`)) part.style.display = off ? "none" : "";
    });
  }

  for (const figure of document.querySelectorAll("figure[data-curves]")) {
    const { log, left, width, start, end, fpr, attacks } = JSON.parse(figure.dataset.curves);
    const svg = figure.querySelector("svg");
    const [, , w, h] = svg.getAttribute("viewBox").split(" ").map(Number);
    const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
    line.setAttribute("class", "cursor");
    line.setAttribute("y1", "0");
    line.setAttribute("y2", String(0.89 * h));
    const readout = document.createElement("p");
    readout.className = "readout small";
    readout.setAttribute("aria-live", "polite");
    readout.textContent = "Point at the figure, or use the arrow keys, to read values.";
    figure.append(readout);
    figure.tabIndex = 0;
    figure.setAttribute("aria-label", "ROC curves, to be read with the arrow keys");
    let at = Math.floor(fpr.length / 4);

    const tell = () => {
      const x = fpr[at];
      const share = log ? Math.log(x / start) / Math.log(end / start) : (x - start) / (end - start);
      for (const side of ["x1", "x2"]) line.setAttribute(side, String(w * (left + width * share)));
      svg.append(line);
      const values = attacks.filter((a) => !hidden.has(String(a.order))).map((a) => `${a.name} ${percent(a.tpr[at])}`);
      readout.textContent = `At ${percent(x)} false positives: ${values.join(", ") || "no attack shown"}`;
    };
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const share = ((event.clientX - box.left) / box.width - left) / width;
      const x = log ? start * Math.pow(end / start, share) : start + (end - start) * share;
      at = fpr.reduce((best, value, i) => (Math.abs(value - x) < Math.abs(fpr[best] - x) ? i : best), 0);
      tell();
    });
    figure.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, PageDown: -10, PageUp: 10, Home: -fpr.length, End: fpr.length }[event.key];
      if (!step) return;
      event.preventDefault();
      at = Math.min(Math.max(at + step, 0), fpr.length - 1);
      tell();
    });
  }
})();
