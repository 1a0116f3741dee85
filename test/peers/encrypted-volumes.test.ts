import assert from 'node:assert/strict';
import { copyFileSync, mkdirSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { allDrivers } from '../../src/drivers/index.js';
import { createRealHost } from '../../src/host/real.js';
import { Engine } from '../../src/monitor/engine.js';
import type { JsonObject } from '../../src/schema/types.js';
import { Daemon, run, scratch, skipWithout } from './daemon.js';
import { SECRETS } from './encrypted-tools.js';

type Args = { [key: string]: unknown };
type Execute = (command: string, args: Args) => Promise<unknown>;

const MONITOR = ['--chardev', 'socket,id=c,path=qmp.sock,server=on,wait=off', '--monitor', 'chardev=c'];

async function storageDaemon(t: TestContext, folder: string, program: string): Promise<Execute> {
  const daemon = await Daemon.start(t, folder, [program, ...MONITOR, ...SECRETS]);
  return (command, args) => (command === 'quit' ? daemon.quit() : daemon.execute(command, args));
}

/** An engine of ours with the same secrets; the folder becomes the process's. */
async function engine(t: TestContext, folder: string): Promise<Execute> {
  const start = process.cwd();
  process.chdir(folder);
  const ours = new Engine({ host: createRealHost(), drivers: allDrivers, kind: 'storage-daemon' });
  t.after(async () => {
    process.chdir(start);
    await ours.close();
  });
  const execute: Execute = (command, args) => ours.hub.execute(command, args as JsonObject);
  for (const id of ['s', 't', 'bad'])
    await execute('object-add', { 'qom-type': 'secret', id, data: `password-${id}` });
  return execute;
}

/** What became of a job; of a command that was refused, why. */
async function outcome(execute: Execute, command: string, args: Args): Promise<string> {
  try {
    await execute(command, { 'job-id': 'job', ...args });
  } catch (error) {
    return (error as Error).message.replace(/^[\w-]+: /, '');
  }
  for (;;) {
    const [job] = (await execute('query-jobs', {})) as Array<{ status: string; error?: string }>;
    if (job?.status !== 'concluded') await new Promise((resolve) => setTimeout(resolve, 20));
    else {
      await execute('job-dismiss', { id: 'job' });
      return job.error ?? 'done';
    }
  }
}

const luks = (how: Args): Args => ({ driver: 'luks', ...how });
const qcow2 = (how: Args): Args => ({ driver: 'qcow2', encrypt: { format: 'luks', ...how } });

/** Each on the volume as the one before left it. */
const AMENDMENTS: readonly Args[] = [
  { state: 'active' },
  { state: 'active', 'new-secret': 'none' },
  { state: 'active', 'new-secret': 't', 'iter-time': 10 },
  { state: 'active', 'new-secret': 't', 'iter-time': 10, keyslot: 1 },
  { state: 'active', 'new-secret': 't', 'iter-time': 10, keyslot: 8 },
  { state: 'active', 'new-secret': 't', 'iter-time': 10, keyslot: 7 },
  { state: 'active', 'new-secret': 't', 'iter-time': 10, 'old-secret': 'bad' },
  { state: 'inactive' },
  { state: 'inactive', 'new-secret': 't', keyslot: 1 },
  { state: 'inactive', 'iter-time': 10, keyslot: 1 },
  { state: 'inactive', keyslot: 1, 'old-secret': 't' },
  { state: 'inactive', keyslot: 5 },
  { state: 'inactive', 'old-secret': 'bad' },
  { state: 'inactive', keyslot: 7 },
  { state: 'inactive', 'old-secret': 't' },
  { state: 'inactive', 'old-secret': 's' },
  { state: 'inactive', keyslot: 0 },
  { state: 'none' },
  { keyslot: 0 },
];

for (const [name, options, format] of [
  ['luks', luks, ['luks', 'key-secret=s,iter-time=10']],
  ['qcow2', qcow2, ['qcow2', 'encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10']],
] as const)
  test(`x-blockdev-amend of ${name} does and says what the storage daemon's does`, async (t) => {
    if (skipWithout(t, 'qemu-img', 'qemu-storage-daemon')) return;
    const folder = scratch(t);
    run(folder, 'qemu-img', 'create', '-q', ...SECRETS, '-f', format[0], '-o', format[1], 'image', '64k');
    const [ours, theirs] = [join(folder, 'ours'), join(folder, 'theirs')];
    for (const side of [ours, theirs]) {
      mkdirSync(side);
      copyFileSync(join(folder, 'image'), join(side, 'image'));
    }
    const sides = [await storageDaemon(t, theirs, 'qemu-storage-daemon'), await engine(t, ours)];
    const file = { driver: 'file', filename: 'image' };
    const key = name === 'luks' ? { 'key-secret': 's' } : { encrypt: { format: 'luks', 'key-secret': 's' } };
    for (const execute of sides)
      await execute('blockdev-add', { driver: name, 'node-name': 'n', file, ...key });
    const last = [{ state: 'inactive', keyslot: 0 }, true] as const;
    for (const [how, force] of [...AMENDMENTS.map((one) => [one, undefined] as const), last]) {
      const args = { 'node-name': 'n', options: options(how), ...(force !== undefined && { force }) };
      const answers: string[] = [];
      for (const execute of sides) answers.push(await outcome(execute, 'x-blockdev-amend', args));
      assert.equal(answers[1], answers[0], JSON.stringify(args));
    }
  });

/** QEMU 9.0 or later, in a folder of its own: LATER_QEMU=FOLDER. */
const LATER = process.env['LATER_QEMU'];

test('a volume with its header apart is opened by the side that has not made it', async (t) => {
  if (LATER === undefined) return t.skip('LATER_QEMU=FOLDER names programs of QEMU 9.0 or later');
  const folder = scratch(t);
  const [ours, theirs] = [
    await engine(t, folder),
    await storageDaemon(t, folder, join(LATER, 'qemu-storage-daemon')),
  ];
  const node = (name: string): Args => ({ driver: 'file', filename: join(folder, name) });
  for (const [maker, reader, name] of [
    [ours, theirs, 'ours'],
    [theirs, ours, 'theirs'],
  ] as const) {
    const [header, file] = [node(`${name}-header`), node(`${name}-disk`)];
    for (const [id, { driver, filename }] of Object.entries({ header, file })) {
      writeFileSync(filename as string, '');
      await maker('blockdev-add', { driver, filename, 'node-name': id });
    }
    const options = { driver: 'luks', size: 65536, 'key-secret': 's', 'iter-time': 10 };
    const make = (more: Args): Promise<string> =>
      outcome(maker, 'blockdev-create', { options: { ...options, ...more } });
    assert.equal(await make({}), "Either the parameter 'header' or 'file' must be specified");
    const needsFile = "Parameter 'preallocation' requires 'file' to be specified for formatting LUKS disk";
    assert.equal(await make({ header: 'header', preallocation: 'full' }), needsFile);
    assert.equal(await make({ header: 'header' }), 'done');
    assert.equal(statSync(file['filename'] as string).size, 0);
    assert.equal(await make({ header: 'header', file: 'file' }), 'done');
    assert.equal(statSync(header['filename'] as string).size, 2068480);
    assert.equal(statSync(file['filename'] as string).size, 65536);
    // QEMU's job leaves the nodes in use.
    if (maker === theirs) await theirs('quit', {});
    else for (const id of ['header', 'file']) await ours('blockdev-del', { 'node-name': id });
    const open = { driver: 'luks', 'node-name': 'n', header, file, 'key-secret': 's' };
    await reader('blockdev-add', open);
    await reader('blockdev-del', { 'node-name': 'n' });
    const qemuIo = (command: string): string =>
      run(folder, join(LATER, 'qemu-io'), ...SECRETS, '-c', command, `json:${JSON.stringify(open)}`);
    assert.doesNotMatch(qemuIo('write -P 7 3k 40k'), /failed/);
    assert.doesNotMatch(qemuIo('read -P 7 3k 40k'), /failed/);
  }
});
