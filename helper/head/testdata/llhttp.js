// SPDX-License-Identifier: Apache-2.0

// Reads connections from stdin, each a length (4 bytes, big endian), one byte (1: the
// server may wait for more: the connection ends after its bytes) and its bytes, and gives
// every one to Node's own HTTP server. It waits for the rest of a body, and after an
// upgrade that it does not do: of that it drops what follows in the same segment. Writes for each a line of JSON: the requests that the server read, in order.
'use strict';

const http = require('http');
const { Duplex } = require('stream');

function read(req, res) {
  const reading = { Method: req.method, Target: req.url, Host: req.headers.host ?? '', Body: 0 };
  req.socket.readings.push(reading);
  req.on('data', (data) => { reading.Body += data.length; });
  req.on('end', () => res.end());
  req.on('error', () => { reading.Body = -1; });
}

const server = http.createServer(read);
server.on('checkExpectation', read); // it would answer 417 itself
server.on('clientError', (err, socket) => {
  socket.refused = err.code ?? String(err);
  if (err.code === 'HPE_CLOSED_CONNECTION') {
    // Bytes after a request that ends the connection; the handler has not seen its end yet.
    setTimeout(() => socket.destroy(), 1);
    return;
  }
  socket.destroy();
});

// connection resolves to what the server read of bytes.
function connection(bytes, cut) {
  return new Promise((resolve, reject) => {
    const socket = new Duplex({
      read() {},
      write(chunk, encoding, done) { done(); },
      final(done) { done(); this.destroy(); },
    });
    const timer = setTimeout(() => reject(new Error('the server waits: ' + JSON.stringify(bytes.toString('latin1')))), 10000);
    socket.readings = [];
    socket.setTimeout = socket.setNoDelay = socket.setKeepAlive = () => socket;
    socket.on('error', () => {});
    socket.on('close', () => {
      clearTimeout(timer);
      setImmediate(() => resolve({ Readings: socket.readings, Refused: socket.refused ?? '' }));
    });
    server.emit('connection', socket);
    socket.push(bytes);
    if (cut) setImmediate(() => socket.push(null));
  });
}

async function main() {
  const chunks = [];
  for await (const chunk of process.stdin) chunks.push(chunk);
  const input = Buffer.concat(chunks);
  let lines = '';
  for (let at = 0; at < input.length;) {
    const length = input.readUInt32BE(at);
    const cut = input[at + 4] === 1;
    const bytes = input.subarray(at + 5, at + 5 + length);
    at += 5 + length;
    lines += JSON.stringify(await connection(bytes, cut)) + '\n';
  }
  process.stdout.write(lines);
}

main().catch((err) => {
  console.error(err);
  process.exit(1);
});
