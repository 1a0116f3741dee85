import assert from 'node:assert/strict';
import { createCipheriv, randomBytes } from 'node:crypto';
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { createImage } from '../../src/block/create.js';
import { allDrivers } from '../../src/drivers/index.js';
import { createRealHost } from '../../src/host/real.js';
import { Engine } from '../../src/monitor/engine.js';
import { StateKeeper } from '../../src/monitor/state/keeper.js';
import { restoreEngine } from '../../src/monitor/state/restore.js';
import { StateStore } from '../../src/monitor/state/store.js';
import type { ObjectOptions } from '../../src/schema/objects.js';
import type { JsonObject, JsonValue } from '../../src/schema/types.js';
import { FileServer } from '../kit/file-server.js';
import { scratch } from '../kit/program.js';

const PROGRAM = { askedDigest: '', monitors: [], isMultiplexed: false };
const COOKIE = 'session=crumbs-of-it';
const PASSWORD = 'open-sesame';

interface Daemon {
  engine: Engine;
  execute: (command: string, args?: JsonObject) => Promise<JsonValue>;
  end: () => Promise<void>;
}

class Bed {
  readonly folder: string;
  readonly server: FileServer;

  constructor(folder: string, server: FileServer) {
    this.folder = folder;
    this.server = server;
  }

  path(name: string): string {
    return join(this.folder, name);
  }

  url(path: string, user = ''): string {
    return `http://${user}127.0.0.1:${this.server.port}${path}`;
  }

  http(name: string, more: JsonObject = {}): JsonObject {
    return { driver: 'http', 'node-name': name, 'read-only': true, url: this.url('/f/a.raw'), ...more };
  }

  /** All that a daemon has left in a folder. */
  left(folder: string): string {
    const names = existsSync(this.path(folder)) ? readdirSync(this.path(folder)) : [];
    return names.map((name) => readFileSync(this.path(join(folder, name)), 'latin1')).join('\n');
  }

  async start(secrets: readonly ObjectOptions[] = [], before?: JsonObject): Promise<Daemon> {
    const host = createRealHost();
    const store = await StateStore.open(host, this.path('state'));
    const saved = await store.read();
    const engine = new Engine({ host, drivers: allDrivers, kind: 'machine', startStopped: true });
    const end = async (): Promise<void> => {
      engine.graph.keeper = undefined;
      await engine.close();
      await store.close();
    };
    try {
      if (saved) await restoreEngine(engine, saved, new Map(secrets.map((one) => [one.id, one])));
      if (before) await engine.hub.execute('blockdev-add', before);
      await StateKeeper.begin(store, engine, PROGRAM, saved !== undefined);
    } catch (error) {
      await end();
      throw error;
    }
    const execute: Daemon['execute'] = (command, args = {}) =>
      engine.hub.execute(command, args) as Promise<JsonValue>;
    return { engine, execute, end };
  }
}

async function newBed(t: TestContext): Promise<Bed> {
  const folder = scratch(t);
  const server = await FileServer.start(folder);
  t.after(() => server.close());
  writeFileSync(join(folder, 'a.raw'), Buffer.alloc(65536, 5));
  return new Bed(folder, server);
}

test('a secret that is an option itself is refused by name, and is nowhere on the disk', async (t) => {
  const bed = await newBed(t);
  const { execute, engine, end } = await bed.start();
  const cookie = "Node 'h' has a 'cookie', which would stand in the state";
  const password = "has a password in its 'url', which would stand in the state";
  await assert.rejects(execute('blockdev-add', bed.http('h', { cookie: COOKIE })), {
    message: cookie,
    hint: 'Give it as a secret: cookie-secret.',
  });
  const withUser = bed.url('/private/a.raw', `user:${PASSWORD}@`);
  await assert.rejects(execute('blockdev-add', bed.http('h', { url: withUser })), {
    message: `Node 'h' ${password}`,
    hint: 'Give it as a secret: username and password-secret.',
  });
  const line = `drive_add 0 if=none,id=d,format=raw,readonly=on,file=${withUser}`;
  const printed = await execute('human-monitor-command', { 'command-line': line });
  assert.match(printed as string, new RegExp(`Node '#block\\d+' ${password}`));
  // An image that says so itself.
  await createImage(engine.opener, bed.path('top.qcow2'), 'qcow2', {
    sizeBytes: 65536,
    ...{ backingFile: withUser, backingFormat: 'raw' },
  });
  const top = {
    driver: 'qcow2',
    'node-name': 'top',
    file: { driver: 'file', filename: bed.path('top.qcow2') },
  };
  await assert.rejects(execute('blockdev-add', top), {
    message: new RegExp(`Node '#block\\d+' ${password}`),
  });
  assert.deepEqual([...engine.graph.nodes], []);
  assert.doesNotMatch(bed.left('state'), /crumbs|sesame/);
  await end();
  // What was there before the state was kept.
  await assert.rejects(bed.start([], bed.http('h', { cookie: COOKIE })), { message: cookie });
  assert.doesNotMatch(bed.left('state'), /crumbs|sesame/);
});

test('no journal of a job has a secret', async (t) => {
  const bed = await newBed(t);
  const engine = new Engine({ host: createRealHost(), drivers: allDrivers, kind: 'machine' });
  t.after(() => engine.close());
  const execute = (command: string, args: JsonObject): Promise<unknown> => engine.hub.execute(command, args);
  await createImage(engine.opener, bed.path('copy.qcow2'), 'qcow2', { sizeBytes: 65536 });
  const file = { driver: 'file', filename: bed.path('copy.qcow2') };
  await execute('blockdev-add', { driver: 'qcow2', 'node-name': 'copy', file });
  await execute('blockdev-add', bed.http('h', { cookie: COOKIE }));
  const job = { 'job-id': 'j', device: 'h', target: 'copy', sync: 'full', 'x-persist': bed.path('journal') };
  await assert.rejects(execute('blockdev-backup', job), {
    message: "Node 'h' has a 'cookie', which would stand in the journal",
  });
  assert.ok(!existsSync(bed.path('journal')));
});

/** As QEMU's -object secret with keyid. */
function encrypted(text: string, key: Buffer): { data: string; iv: string } {
  const iv = randomBytes(16);
  const cipher = createCipheriv('aes-256-cbc', key, iv);
  const data = Buffer.concat([cipher.update(text), cipher.final()]).toString('base64');
  return { data, iv: iv.toString('base64') };
}

test('secrets of every kind come back by their files or are given again, and none is in the state', async (t) => {
  const bed = await newBed(t);
  const key = randomBytes(32);
  writeFileSync(bed.path('key'), key.toString('base64'));
  writeFileSync(bed.path('cookie'), COOKIE);
  const sealed = encrypted('password', key);
  const given: ObjectOptions[] = [
    { 'qom-type': 'secret', id: 'inline', data: 'password' },
    { 'qom-type': 'secret', id: 'digits', data: Buffer.from(PASSWORD).toString('base64'), format: 'base64' },
    { 'qom-type': 'secret', id: 'sealed', keyid: 'key', format: 'base64', ...sealed },
  ];
  const before = await bed.start();
  const { execute } = before;
  await execute('object-add', { 'qom-type': 'secret', id: 'key', file: bed.path('key'), format: 'base64' });
  await execute('object-add', { 'qom-type': 'secret', id: 'cookie', file: bed.path('cookie') });
  for (const secret of given) await execute('object-add', secret);
  const asUser = { url: bed.url('/private/a.raw'), username: 'user' };
  await execute(
    'blockdev-add',
    bed.http('h', { ...asUser, 'password-secret': 'inline', 'cookie-secret': 'cookie' }),
  );
  await execute('blockdev-add', bed.http('s', { ...asUser, 'password-secret': 'sealed' }));
  const nodes = await execute('query-named-block-nodes');
  const secrets = [
    COOKIE,
    PASSWORD,
    Buffer.from(PASSWORD).toString('base64'),
    key.toString('base64'),
    sealed.data,
  ];
  const left = bed.left('state');
  assert.match(left, /"inline"/);
  for (const secret of secrets) assert.ok(!left.includes(secret), secret);
  assert.doesNotMatch(left, /"password"/);
  await before.end();

  await assert.rejects(bed.start(), { message: /'inline', 'digits', 'sealed' must be given again/ });
  bed.server.requests.length = 0;
  const after = await bed.start(given);
  assert.deepEqual(await after.execute('query-named-block-nodes'), nodes);
  assert.ok(bed.server.requests.some(({ headers }) => headers.cookie === COOKIE));
  assert.equal(Buffer.from(after.engine.graph.objects.secret('digits')).toString(), PASSWORD);
  await after.end();
});
