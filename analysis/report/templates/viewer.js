// Viewer: five pictures on top of each other; the slider draws the next one over the one before.
if (data.views.length) (() => {
  const STOPS = ["LR", "SR of A", "SR of B", "HR", "Bits"];
  const VIRIDIS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
  const by = name => document.getElementById(`view-${name}`);
  const stage = document.getElementById("stage");
  const slider = by("slider");
  const SVG = stage.querySelector("svg").namespaceURI;

  const png = text => ["data:image/png;base64", text].join();
  const label = network => `${network.backbone} \u00b7 ${network.scheme}`;
  const image = () => data.views[Number(by("image").value)];
  const chosen = name => image().networks[Number(by(name).value)];
  const ofBits = () => chosen(by("of").value);

  function colour(share) {
    const place = Math.min(Math.max(share, 0), 1) * (VIRIDIS.length - 1);
    const first = Math.min(Math.floor(place), VIRIDIS.length - 2);
    const mixed = VIRIDIS[first].map((v, i) => Math.round(v + (VIRIDIS[first + 1][i] - v) * (place - first)));
    return `rgb(${mixed.join(",")})`;
  }

  // bits of each tile: of one point, or the mean over those that count
  function tileBits(network, layer) {
    const tiles = network.rows * network.columns;
    const all = Uint8Array.from(atob(network.bits), c => c.charCodeAt(0));
    const used = layer === "" ? network.counted.flatMap((counts, i) => counts ? [i] : []) : [Number(layer)];
    return Array.from({length: used.length ? tiles : 0}, (_, t) =>
      used.reduce((sum, point) => sum + all[point * tiles + t], 0) / used.length);
  }

  function range(network) {
    const all = Uint8Array.from(atob(network.bits), c => c.charCodeAt(0));
    if (!all.length) return [0, 1];
    const [low, high] = [Math.min(...all), Math.max(...all)];
    return low < high ? [low, high] : [low - 1, high + 1];
  }

  function bitMap() {
    const {side, tile, hr} = image();
    const network = ofBits();
    const [low, high] = range(network);
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", `0 0 ${side} ${side}`);
    const add = (tag, attributes, text) => {
      const element = document.createElementNS(SVG, tag);
      for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
      if (text !== undefined) element.textContent = text;
      svg.append(element);
    };
    add("image", {href: png(hr), width: side, height: side, style: "filter: grayscale(1)"});
    tileBits(network, by("layer").value).forEach((bits, t) => {
      const [x, y] = [t % network.columns * tile, Math.floor(t / network.columns) * tile];
      const fill = colour((bits - low) / (high - low));
      add("rect", {x, y, width: tile, height: tile, fill, "fill-opacity": .55, class: "tile"});
      add("text", {x: x + tile / 2, y: y + tile / 2, "font-size": tile / 5}, Number(bits.toFixed(1)));
    });
    return svg;
  }

  function picture(text) {
    return make("img", undefined, {src: png(text), alt: ""});
  }

  function draw() {
    const {lr, smooth, hr} = image();
    const first = by("lr").value === "lr" ? lr : smooth;
    stage.replaceChildren(picture(first), picture(chosen("a").sr), picture(chosen("b").sr), picture(hr), bitMap(),
      make("span", undefined, {class: "edge"}));
    const [low, high] = range(ofBits());
    const bar = make("i");
    bar.style.background = `linear-gradient(to right, ${VIRIDIS.map(c => `rgb(${c.join(",")})`).join(", ")})`;
    const has = tileBits(ofBits(), "").length > 0;
    by("legend").replaceChildren(...has
      ? [make("span", `Bits: ${low}`), bar, make("span", high)] : [make("span", "This method has no layers to give bits to.")]);
    facts();
    slide();
  }

  function slide() {
    const value = Number(slider.value);
    const layers = [...stage.children];
    const edge = layers.pop();
    layers.forEach((layer, i) => {
      const share = i === 0 ? 1 : Math.min(Math.max(value - (i - 1), 0), 1);
      layer.style.clipPath = `inset(0 ${(1 - share) * 100}% 0 0)`;
    });
    const part = value % 1;
    edge.style.left = `calc(${part * 100}% - 1px)`;
    edge.hidden = part === 0;
    const at = Math.floor(value);
    const names = [STOPS[0], `A: ${label(chosen("a"))}`, `B: ${label(chosen("b"))}`, STOPS[3],
      `bits of ${label(ofBits())}, ${by("layer").selectedOptions[0].textContent}`];
    const state = part === 0 ? names[at] : `left ${names[at + 1]}, right ${names[at]}`;
    by("state").textContent = state;
    slider.setAttribute("aria-valuetext", state);
    [...by("stops").children].forEach((stop, i) => stop.setAttribute("aria-pressed", String(part === 0 && i === at)));
  }

  function facts() {
    const table = make("table", undefined, {id: "view-facts"});
    const head = table.createTHead().insertRow();
    for (const name of ["", "Network", "PSNR (dB)", "FAB (bits)", "BitOPs (G)"]) {
      head.append(make("th", name, {scope: "col", class: name.endsWith(")") ? "number" : ""}));
    }
    const body = table.createTBody();
    for (const name of ["a", "b"]) {
      const network = chosen(name);
      const row = body.insertRow();
      const link = make("a", label(network), {href: `#cell-${network.cell}`});
      row.append(make("td", name.toUpperCase()), make("td"));
      row.cells[1].append(link);
      const known = network.points.length > 0;
      for (const [number, digits, has] of [[network.psnr, 2, true], [network.fab, 2, known], [network.bitops, 1, known]]) {
        const text = has ? shownNumber(number, digits) : "\u2013";
        row.append(make("td", text, {class: "number"}));
      }
    }
    by("facts").replaceWith(table);
  }

  function fill(select, entries, value) {
    select.replaceChildren(...entries.map(([key, text]) => make("option", text, {value: key})));
    if (entries.some(([key]) => String(key) === value)) select.value = value;
  }

  function fillLayers() {
    const layers = ofBits().points.map((name, i) => [i, ofBits().counted[i] ? name : `${name} (not counted)`]);
    fill(by("layer"), [["", "mean over counted points"], ...layers], by("layer").value);
  }

  function fillNetworks() {
    const entries = image().networks.map((network, i) => [i, label(network)]);
    const kept = ["a", "b"].map(name => by(name).selectedOptions.length ? by(name).selectedOptions[0].textContent : "");
    const last = String(entries.length - 1);
    ["a", "b"].forEach((name, i) => {
      const same = entries.find(([, text]) => text === kept[i]);
      fill(by(name), entries, same ? String(same[0]) : i === 0 ? String(Math.max(0, entries.length - 2)) : last);
    });
    fillLayers();
  }

  fill(by("image"), data.views.map((view, i) => [i, `${view.dataset} \u00b7 ${view.image}`]), "0");
  fillNetworks();
  STOPS.forEach((name, i) => {
    const stop = make("button", name, {type: "button"});
    stop.addEventListener("click", () => { slider.value = i; slide(); });
    by("stops").append(stop);
  });
  by("image").addEventListener("change", () => { fillNetworks(); draw(); });
  for (const name of ["a", "b", "of"]) by(name).addEventListener("change", () => { fillLayers(); draw(); });
  for (const name of ["lr", "layer"]) by(name).addEventListener("change", draw);
  slider.addEventListener("input", slide);
  draw();
})();
