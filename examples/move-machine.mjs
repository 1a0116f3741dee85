// Moves a machine, its disks included, to another livedisk that waits for it, and shows how far it is.
//
//   node move-machine.mjs SOCKET URI SERVER [--dry-run] [--max-stop MS]
//
// URI is where the machine waits (tcp:HOST:PORT or unix:PATH), SERVER the NBD server with its disks (HOST:PORT or a path).
import { parseArgs } from 'node:util';
import { createRealHost } from 'livedisk';
import { QmpClient } from 'livedisk/qmp';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { 'dry-run': { type: 'boolean' }, 'max-stop': { type: 'string' } },
});
const [socket, uri, server] = positionals;
if (server === undefined) {
  console.error('usage: move-machine.mjs SOCKET URI SERVER [--dry-run] [--max-stop MS]');
  process.exit(1);
}

const qmp = await QmpClient.connect(createRealHost(), { type: 'unix', path: socket });
try {
  process.exitCode = await move();
} finally {
  qmp.close();
}

async function move() {
  const request = { uri, storage: { server: address(server) } };
  const plan = await qmp.execute('x-move', { ...request, 'dry-run': true });
  for (const { device, export: name, data, length } of plan.disks)
    console.log(`${device} goes to export ${name}: ${data} of ${length} bytes hold data`);
  for (const { node, name } of plan.bitmaps) console.log(`bitmap ${name} of ${node} goes along`);
  console.log(`the guest will rest for ${plan['forecast-stop-ms']} ms or more`);
  if (values['dry-run']) return 0;
  const maxStop = values['max-stop'] === undefined ? {} : { 'max-stop': Number(values['max-stop']) };
  process.once('SIGINT', () => void qmp.execute('x-move-cancel').catch(() => undefined));
  await qmp.execute('x-move', { ...request, ...maxStop });
  return follow();
}

async function follow() {
  let shown = '';
  for (;;) {
    const { owner, reason, 'x-progress': progress } = await qmp.execute('x-query-move');
    const { stage, disks, error } = progress;
    const [done, left] = ['done', 'left'].map((key) => disks.reduce((sum, disk) => sum + disk[key], 0));
    const percent = done + left === 0 ? 100 : Math.floor((100 * done) / (done + left));
    const line = stage === 'copying' ? `${stage} ${percent}%` : stage;
    if (line !== shown) console.log(line);
    shown = line;
    if (stage === 'completed') {
      console.log(`the guest rested for ${progress['stop-ms']} ms`);
      return 0;
    }
    if (stage === 'failed' || stage === 'cancelled') {
      console.log(`the machine stays here: ${error}`);
      return 1;
    }
    // The link may come back and settle it; x-move-claim does by hand.
    if (owner === 'unknown') console.log(`nobody knows yet who has the machine: ${reason}`);
    await new Promise((resolve) => setTimeout(resolve, owner === 'unknown' ? 2000 : 200));
  }
}

function address(text) {
  const [, host, port] = /^([^/]*):(\d+)$/.exec(text) ?? [];
  return port === undefined ? { type: 'unix', path: text } : { type: 'inet', host, port };
}
