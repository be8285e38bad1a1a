// SPDX-License-Identifier: Apache-2.0
// Node's HTTP server: node server.mjs DIR PORT IDLE MILLISECONDS. At the port IDLE it ends idle connections soon.
import { createServer } from 'node:http';
import { createReadStream, statSync } from 'node:fs';

const [dir, port, idle, time] = process.argv.slice(2);

function handler(name) {
  return (req, res) => {
    res.setHeader('X-Server', 'node');
    const [, first, kind, file] = req.url.split('/');
    if (first !== name && first !== 'any') {
      res.writeHead(404).end();
    } else if (kind === 'file' && req.method === 'GET') {
      const path = `${dir}/file/${file}`;
      res.setHeader('Content-Length', statSync(path).size);
      createReadStream(path).pipe(res);
    } else if (kind === 'echo') {
      req.pipe(res); // in chunks
    } else {
      res.writeHead(404).end();
    }
  };
}

createServer({ keepAliveTimeout: 60_000 }, handler('node')).listen(+port);
const soon = createServer(handler('node-idle'));
soon.keepAliveTimeout = +time;
soon.listen(+idle);
