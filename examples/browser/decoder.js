// A topic of ringmain in a browser: subscribes over WebSocket, decodes binary rows, and resumes where it was when the connection
// breaks. The protocol is tools/gateway/FORMAT.md.
//
//   subscribe("ws://127.0.0.1:8765/ws", {topic: "exchange/trades"}, {rows: (rows, message) => …, state: text => …})
//
// Integers of eight bytes are BigInt, others numbers; bytes are text; arrays are arrays.

const READERS = {
  "?": [1, (view, at) => view.getUint8(at) !== 0],
  i1: [1, (view, at) => view.getInt8(at)],
  u1: [1, (view, at) => view.getUint8(at)],
  i2: [2, (view, at) => view.getInt16(at, true)],
  u2: [2, (view, at) => view.getUint16(at, true)],
  i4: [4, (view, at) => view.getInt32(at, true)],
  u4: [4, (view, at) => view.getUint32(at, true)],
  i8: [8, (view, at) => view.getBigInt64(at, true)],
  u8: [8, (view, at) => view.getBigUint64(at, true)],
  f4: [4, (view, at) => view.getFloat32(at, true)],
  f8: [8, (view, at) => view.getFloat64(at, true)],
};

// What reads one field: a function of a DataView and the place of the row in it.
function fieldReader(format, offset) {
  const [, shape, kind] = /^(?:\(([\d, ]*)\))?[<|]?(.+)$/.exec(format);
  let [bytes, read] = READERS[kind] ?? textReader(Number(kind.slice(1)));
  for (const length of (shape?.match(/\d+/g) ?? []).reverse()) {
    const [step, one] = [bytes, read];
    read = (view, at) => Array.from({length}, (_, index) => one(view, at + index * step));
    bytes = step * length;
  }
  return (view, at) => read(view, at + offset);
}

function textReader(bytes) {
  const decoder = new TextDecoder();
  return [bytes, (view, at) => decoder.decode(new Uint8Array(view.buffer, view.byteOffset + at, bytes)).replace(/\0+$/, "")];
}

// The `dtype` of a `subscribed` message, as what `decode` needs.
export function layout(dtype) {
  const fields = dtype.names.map((name, index) => [name, fieldReader(dtype.formats[index], dtype.offsets[index])]);
  return {fields, rowBytes: dtype.itemsize};
}

// A binary message as {stream, first, last, lost, conflated, rows}.
export function decode(buffer, {fields, rowBytes}) {
  const view = new DataView(buffer);
  const [version, flags, begin] = [view.getUint8(0), view.getUint8(1), view.getUint16(2, true)];
  const count = view.getUint32(8, true);
  if (version !== 1 || view.getUint32(12, true) !== rowBytes) throw new Error(`version 1 and rows of ${rowBytes} bytes are expected`);
  const rows = Array.from({length: count}, (_, index) =>
    Object.fromEntries(fields.map(([name, read]) => [name, read(view, begin + index * rowBytes)])));
  const [first, last, lost] = [16, 24, 32].map(at => view.getBigUint64(at, true));
  return {stream: view.getUint32(4, true), first, last, lost, conflated: (flags & 1) === 1, rows};
}

// Rows of one subscription for as long as it is not closed; `token` where the gateway wants one. Where the topic is found to be
// another stream, `state` is told so, and it begins as at first; a `from` that was a sequence of the old one becomes "earliest".
export function subscribe(url, wishes, {rows, state = () => {}, token = null}) {
  let socket, known, log = null, last = null, closed = false, pause = 100;
  let {from = "latest", ...others} = wishes;
  function connect() {
    socket = new WebSocket(url, token === null ? ["ringmain.1"] : ["ringmain.1", `token.${token}`]);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => socket.send(request());
    socket.onmessage = ({data}) => typeof data === "string" ? told(JSON.parse(data)) : received(decode(data, known));
    socket.onclose = ({code, reason}) => {
      state(`closed (${code} ${reason})`);
      if (!closed) setTimeout(connect, pause = Math.min(2 * pause, 5000));
    };
  }
  function request() { // a BigInt has no JSON of its own
    const start = last === null ? JSON.stringify(from) : `${last + 1n}`;
    return JSON.stringify({op: "subscribe", id: 1, format: "binary", ...others}).replace(/}$/, `,"from":${start}}`);
  }
  function told(message) {
    if (message.type === "subscribed" && log !== null && message.log !== null && message.log !== log) {
      beginAnew(`it has the log ${message.log}, and had ${log}`);
    } else if (message.type === "subscribed") {
      known = layout(message.dtype);
      log = message.log ?? log;
      last ??= BigInt(message.sequence); // also where the connection breaks before the first row
      pause = 100;
      state("subscribed");
    } else if (message.type === "reset") {
      last = BigInt(message.sequence);
      log = null; // it may be another one; the next `subscribed` says
    } else if (message.type === "error" && message.code === "ahead" && last !== null) {
      beginAnew(message.reason);
    } else if (message.type === "error" || message.type === "unsubscribed") {
      state(message.reason);
      socket.close();
    }
  }
  function beginAnew(reason) { // sequences of two streams have nothing to do with each other
    if (typeof from !== "string") from = "earliest";
    log = last = null;
    state(`another stream: ${reason}`);
    socket.close(); // and connect again: rows of what was subscribed to are then not taken for the new ones
  }
  function received(message) {
    last = message.last;
    rows(message.rows, message);
  }
  connect();
  return {close() { closed = true; socket.close(); }, get last() { return last; }, get socket() { return socket; }};
}
