import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { TestContext } from 'node:test';

/** Says what a new process says, and makes nothing of what comes. */
const FAKE = `const mode = process.argv[3];
const say = (socket, type) => {
  const text = Buffer.from(JSON.stringify({ type }));
  const header = Buffer.alloc(8);
  header.writeUInt32LE(text.length, 0);
  socket.write(Buffer.concat([header, text]));
};
const marks = [['"protocol"', 'hello'], ['"memories"', 'rehearsed'], ['"live"', 'ready'], ['"report"', 'owned']];
process.on('SIGTERM', () => (console.log('told to end'), process.exit(0)));
require('node:net').createServer((socket) => {
  let seen = '';
  socket.on('error', () => undefined);
  socket.on('data', (chunk) => {
    seen += chunk.toString('latin1');
    const [mark, answer] = marks[0] ?? [];
    if (mark === undefined || !seen.includes(mark)) return;
    seen = '';
    marks.shift();
    const isSlow = ['ready', 'owned'].includes(answer);
    if (isSlow) console.log('asked for ' + answer);
    setTimeout(() => {
      say(socket, answer);
      if (mode === 'stops' && answer === 'rehearsed') process.kill(process.pid, 'SIGSTOP');
    }, isSlow ? 500 : 0);
  });
}).listen(process.argv[2], () => console.log('listens'));`;

/** A new process that listens at next.sock: one that stops after the rehearsal, or one that takes its time and serves nothing. */
export async function fakeSuccessor(
  t: TestContext,
  folder: string,
  mode: 'stops' | 'slow',
): Promise<{ process: ChildProcess; output: () => string; untilSaid: (what: string) => Promise<void> }> {
  writeFileSync(join(folder, 'fake.cjs'), FAKE);
  const child = spawn(process.execPath, ['fake.cjs', 'next.sock', mode], { cwd: folder });
  t.after(() => child.kill('SIGKILL'));
  let output = '';
  child.stdout.on('data', (chunk: Buffer) => (output += String(chunk)));
  const untilSaid = async (what: string): Promise<void> => {
    while (!output.includes(what)) await once(child.stdout, 'data');
  };
  await untilSaid('listens');
  return { process: child, output: () => output, untilSaid };
}
