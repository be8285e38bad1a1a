// SPDX-License-Identifier: Apache-2.0
// Node's fetch. A request for each line "METHOD URL FILE" of the input.
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';

for await (const line of createInterface({ input: process.stdin })) {
  const [method, url, file] = line.split(' ');
  try {
    const r = await fetch(url, { method, body: file === '-' ? undefined : readFileSync(file) });
    const got = Buffer.from(await r.arrayBuffer());
    console.log(r.status, r.headers.get('X-Server'), createHash('sha256').update(got).digest('hex'));
  } catch (e) {
    console.log('error', String(e), String(e.cause));
  }
}
