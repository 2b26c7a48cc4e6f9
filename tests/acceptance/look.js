async (shot, circles, colours) => {
  // What tests/acceptance/test_dashboard.py measures of a view, in the page itself and in the pixels of its picture.
  const image = await createImageBitmap(await (await fetch(`data:image/png;base64,${shot}`)).blob());
  const canvas = new OffscreenCanvas(image.width, image.height);
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const { data } = context.getImageData(0, 0, image.width, image.height);
  const pixel = (x, y) => {
    const at = 4 * (Math.round(y) * image.width + Math.round(x));
    return [data[at], data[at + 1], data[at + 2]];
  };
  const apart = (a, b) => Math.max(...a.map((part, place) => Math.abs(part - b[place])));

  const cards = [];
  const pictures = [];
  const wrapped = [];
  const cut = [];
  const outside = [];
  const see = (element) => {
    const box = element.getBoundingClientRect();
    if (!element.checkVisibility() || !box.width || !box.height) return;
    if (element.tagName === "HA-CARD") cards.push(box);
    if (element.tagName === "HUI-PICTURE-ELEMENTS-CARD") pictures.push(box);
    if (box.right > innerWidth + 0.5 || box.left < -0.5) outside.push(`${element.tagName} ${element.textContent}`);
  };
  const read = (node) => {
    const text = node.data.trim();
    const holder = node.parentElement ?? node.getRootNode().host;
    if (!text || !holder?.checkVisibility()) return;
    const range = document.createRange();
    range.selectNodeContents(node);
    const lines = new Set([...range.getClientRects()].map((line) => Math.round(line.top)));
    if (/\d/.test(text) && text.length < 16 && lines.size > 1) wrapped.push(text);
    const words = range.getBoundingClientRect();
    for (let at = holder; at; at = at.parentElement ?? at.assignedSlot ?? at.getRootNode().host) {
      const box = at.getBoundingClientRect();
      const hides = getComputedStyle(at).overflowX !== "visible" && box.width;
      if (hides && (words.left < box.left - 1 || words.right > box.right + 1)) cut.push(text);
      if (at.tagName === "HA-CARD") break;
    }
  };
  const walk = (node) => {
    if (node.nodeType === Node.TEXT_NODE) read(node);
    if (node.nodeType === Node.ELEMENT_NODE) {
      if (["STYLE", "SCRIPT", "SVG"].includes(node.tagName.toUpperCase())) return;
      see(node);
    }
    if (node.shadowRoot) walk(node.shadowRoot);
    node.childNodes.forEach(walk);
  };
  walk(document.body);

  // The most pixel rows of a card, one below the other, that show nothing.
  const hollow = (card) => {
    const ground = pixel(card.left + 8, card.top + 8);
    let most = 0;
    let empty = 0;
    for (let y = card.top + 3; y < card.bottom - 3; y += 1) {
      let bare = true;
      for (let x = card.left + 8; bare && x < card.right - 8; x += 1) bare = apart(pixel(x, y), ground) < 12;
      empty = bare ? empty + 1 : 0;
      most = Math.max(most, empty);
    }
    return most;
  };
  const hex = (colour) => [1, 3, 5].map((place) => parseInt(colour.slice(place, place + 2), 16));
  const seen = pictures.map((card) => {
    const scale = card.width / 400;
    const ground = pixel(card.left + 8, card.top + 8);
    const ink = (x, y, width, height) => {
      let found = 0;
      for (let row = -height; row <= height; row += 1)
        for (let column = -width; column <= width; column += 1)
          found += apart(pixel(card.left + x * scale + column, card.top + y * scale + row), ground) > 60;
      return found / ((2 * width + 1) * (2 * height + 1));
    };
    const circle = ([x, y, radius, colour]) => {
      if (y * scale > card.height) return { ring: 0, word: 0, icon: 0, number: 0 };
      const steps = 60;
      let ring = 0;
      for (let step = 0; step < steps; step += 1) {
        const angle = (2 * Math.PI * step) / steps;
        const there = [-1, 0, 1].some((more) => {
          const far = radius * scale + more;
          const [left, top] = [x * scale + far * Math.cos(angle), y * scale + far * Math.sin(angle)];
          return apart(pixel(card.left + left, card.top + top), hex(colour)) < 60;
        });
        ring += there / steps;
      }
      return { ring, word: ink(x, y - 26, 18, 5), icon: ink(x, y, 10, 10), number: ink(x, y + 24, 18, 5) };
    };
    return Object.fromEntries(Object.entries(circles).map(([name, where]) => [name, circle(where)]));
  });
  const painted = colours.map((colour) => {
    let found = 0;
    for (let at = 0; at < data.length; at += 4) found += apart([data[at], data[at + 1], data[at + 2]], hex(colour)) < 8;
    return found;
  });
  return { painted, cards: cards.length, hollow: Math.max(0, ...cards.map(hollow)), pictures: seen, wrapped, cut, outside };
}
