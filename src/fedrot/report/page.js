// Tips under the pointer: bands of a line chart, bars, cells of a map. Text only, so nothing from a file becomes markup.
(() => {
  "use strict";
  const tip = document.getElementById("tip");

  const cellAt = (spot, event) => {
    spot.grid ??= JSON.parse(spot.dataset.cells);
    const box = spot.getBoundingClientRect();
    const { rows, columns, values } = spot.grid;
    const place = (offset, size, count) => Math.min(count - 1, Math.max(0, Math.floor((offset / size) * count)));
    const column = place(event.clientX - box.left, box.width, columns.length);
    const row = place(event.clientY - box.top, box.height, rows.length);
    const frame = spot.nextElementSibling;
    const [x, y, width, height] = ["x", "y", "width", "height"].map((name) => Number(spot.getAttribute(name)));
    frame.setAttribute("x", x + (column * width) / columns.length);
    frame.setAttribute("y", y + (row * height) / rows.length);
    frame.setAttribute("width", width / columns.length);
    frame.setAttribute("height", height / rows.length);
    frame.classList.add("shown");
    return `${rows[row]}\n${columns[column]}\t${values[row][column]}`;
  };

  const show = (text, event) => {
    tip.replaceChildren(
      ...text.split("\n").map((line) => {
        const row = document.createElement("div");
        for (const part of line.split("\t")) {
          const span = document.createElement("span");
          span.textContent = part;
          row.append(span);
        }
        return row;
      }),
    );
    tip.hidden = false;
    const gap = 14;
    const { width, height } = tip.getBoundingClientRect();
    const left = event.clientX + gap + width > innerWidth ? event.clientX - gap - width : event.clientX + gap;
    const top = event.clientY + gap + height > innerHeight ? event.clientY - gap - height : event.clientY + gap;
    tip.style.left = `${Math.max(4, left)}px`;
    tip.style.top = `${Math.max(4, top)}px`;
  };

  const hide = () => {
    tip.hidden = true;
    document.querySelectorAll(".cell.shown").forEach((frame) => frame.classList.remove("shown"));
  };

  for (const spot of document.querySelectorAll(".spot")) {
    const read = (event) => show(spot.dataset.cells ? cellAt(spot, event) : spot.dataset.tip, event);
    spot.addEventListener("pointermove", read);
    spot.addEventListener("pointerdown", read);
    spot.addEventListener("pointerleave", hide);
  }
  addEventListener("scroll", hide, { passive: true });
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => (part.open = true)));
})();
