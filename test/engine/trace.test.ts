import assert from 'node:assert/strict';
import { test, type TestContext } from 'node:test';
import { createRealHost } from '../../src/host/real.js';
import { NbdClient } from '../../src/wire/nbd/client.js';
import { EngineBed } from './engine-bed.js';

/** An engine whose traces are kept. */
function tracedBed(context: TestContext): { bed: EngineBed; lines: string[] } {
  const host = createRealHost();
  const lines: string[] = [];
  host.trace.output.write = (line) => void lines.push(line);
  return { bed: new EngineBed(context, { host }), lines };
}

function switchOn(bed: EngineBed, name: string, enable = true): Promise<unknown> {
  return bed.execute('trace-event-set-state', { name, enable });
}

test("a disk's requests are told where they are wanted, and else nothing is", async (t) => {
  const { bed, lines } = tracedBed(t);
  await bed.image('A');
  await bed.device('A');
  await bed.guest('write 0 64k');
  assert.deepEqual(lines, []);
  await switchOn(bed, 'block_request');
  await bed.guest('read 0 4k');
  assert.match(lines.splice(0).join(''), /^block_request read node 'A' offset 0 bytes 4096 by .*\n$/);
  await switchOn(bed, 'block_request*');
  await bed.guest('flush');
  const told = lines.splice(0).join('');
  assert.match(told, /^block_request flush node 'A' .*\nblock_request_done flush node 'A' .* ns \d+\n$/);
  // One that is done at once, on any file system: there is nothing to read.
  const { backend } = [...bed.engine.devices.values()][0] ?? assert.fail('no disk');
  assert.ok(backend.tryRead(2 ** 20, Buffer.alloc(512)));
  assert.equal(lines.splice(0).length, 2);
  await assert.rejects(backend.read(2 ** 40, Buffer.alloc(512)));
  assert.match(lines.splice(0).join(''), /^block_request .*\nblock_request_failed read .* error /);
  await switchOn(bed, 'block_request*', false);
  await bed.guest('read 0 4k');
  assert.deepEqual(lines, []);
});

test('jobs, commands, events and new clusters are told', async (t) => {
  const { bed, lines } = tracedBed(t);
  await bed.chain('A', 'B');
  await switchOn(bed, '*');
  await bed.guest('write 6M 64k');
  assert.match(
    lines.splice(0).join(''),
    /qcow2_reserve node 'B' offset 6291456 bytes 65536 host offset \d+\n/,
  );
  await bed.execute('block-stream', { device: 'B', 'job-id': 'j' });
  await bed.event('BLOCK_JOB_COMPLETED', 'j');
  await bed.execute('human-monitor-command', { 'command-line': 'info status' });
  const told = lines.join('');
  assert.match(told, /^job_state_transition stream 'j' from undefined to created$/m);
  assert.match(told, /^job_state_transition stream 'j' from pending to concluded$/m);
  assert.match(told, /^monitor_qmp_event event BLOCK_JOB_COMPLETED data \{.*"device": "j".*\}$/m);
  assert.match(told, /^handle_hmp_command cmd info status$/m);
});

test('what NBD clients agree upon and ask is told', async (t) => {
  const { bed, lines } = tracedBed(t);
  await bed.image('A');
  const path = bed.path('nbd');
  await bed.execute('nbd-server-start', { addr: { type: 'unix', data: { path } } });
  await bed.execute('nbd-server-add', { device: 'A', name: 'disk' });
  await switchOn(bed, 'nbd_*');
  const { host } = bed.engine;
  const address = { type: 'unix', path } as const;
  const client = await NbdClient.connect({ host, address, exportName: 'disk' });
  await client.read(4096, Buffer.alloc(512));
  await client.close();
  const told = lines.splice(0).join('');
  assert.match(told, /^nbd_negotiate_option option 7 \(go\) bytes \d+$/m);
  assert.match(told, /^nbd_negotiated export 'disk' style (structured|extended)$/m);
  assert.match(told, /^nbd_request export 'disk' cookie \d+ flags \d+ read offset 4096 bytes 512$/m);
});

test('points are listed and switched over both monitors, and refused as QEMU refuses them', async (t) => {
  const { bed } = tracedBed(t);
  const line = (text: string): Promise<unknown> =>
    bed.execute('human-monitor-command', { 'command-line': text });
  const state = { name: 'nbd_request', state: 'disabled', vcpu: false };
  assert.deepEqual(await bed.execute('trace-event-get-state', { name: 'nbd_req*' }), [state]);
  assert.equal(await line('trace-event nbd_request on'), '');
  assert.equal(await line('info trace-events nbd_request'), 'nbd_request : state 1\r\n');
  assert.deepEqual(await bed.execute('trace-event-get-state', { name: 'nbd_request' }), [
    { ...state, state: 'enabled' },
  ]);
  assert.equal(await line('trace-event nbd_request off'), '');
  assert.deepEqual(await bed.execute('trace-event-get-state', { name: 'none*' }), []);
  for (const command of ['trace-event-get-state', 'trace-event-set-state']) {
    const enable = command.endsWith('set-state') && { enable: true };
    assert.equal(await bed.refusal(command, { name: 'none', ...enable }), 'unknown event "none"');
    const vcpu = { name: 'nbd_*', vcpu: 0, ...enable };
    assert.equal(await bed.refusal(command, vcpu), 'invalid vCPU index 0');
  }
});
