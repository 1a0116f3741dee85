import assert from 'node:assert/strict';
import { createCipheriv } from 'node:crypto';
import { mkdirSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { Authorization } from '../../src/block/objects/authorization.js';
import { TlsCredentials } from '../../src/block/objects/tls-credentials.js';
import type { JsonObject } from '../../src/schema/types.js';
import { EngineBed } from './engine-bed.js';

test('an object is made, shown, changed and deleted', async (t) => {
  const bed = new EngineBed(t);
  await bed.execute('object-add', { 'qom-type': 'iothread', id: 'io0', 'poll-max-ns': 9223372036854775807n });
  assert.deepEqual(await bed.execute('qom-list', { path: '/objects' }), [
    { name: 'type', type: 'string' },
    { name: 'io0', type: 'child<iothread>' },
  ]);
  const at = { path: '/objects/io0', property: 'poll-max-ns' };
  assert.equal(await bed.execute('qom-get', at), 9223372036854775807n);
  await bed.execute('qom-set', { ...at, value: 5 });
  assert.equal(await bed.execute('qom-get', { ...at, path: 'io0' }), 5);
  await bed.execute('object-del', { id: 'io0' });
  assert.equal(await bed.refusal('object-del', { id: 'io0' }), "object 'io0' not found");
  assert.equal(await bed.refusal('qom-list', { path: 'io0' }), "Device 'io0' not found");
});

test('a failed object leaves its id free', async (t) => {
  const bed = new EngineBed(t);
  const secret = { 'qom-type': 'secret', id: 's', file: bed.path('secret') };
  const text = `Unable to read ${secret.file}: Failed to open file “${secret.file}”: No such file or directory`;
  assert.equal(await bed.refusal('object-add', secret), text);
  writeFileSync(secret.file, 'pass');
  await bed.execute('object-add', secret);
  assert.equal(Buffer.from(bed.engine.graph.objects.secret('s')).toString(), 'pass');
});

test('a secret may be encrypted with another', async (t) => {
  const bed = new EngineBed(t);
  const key = Buffer.from(Array.from({ length: 32 }, (_, i) => i * 7));
  const iv = Buffer.alloc(16, 3);
  const cipher = createCipheriv('aes-256-cbc', key, iv);
  const data = Buffer.concat([cipher.update('the secret'), cipher.final()]).toString('base64');
  await bed.execute('object-add', {
    'qom-type': 'secret',
    id: 'master',
    format: 'base64',
    data: key.toString('base64'),
  });
  const rest = { data, format: 'base64', keyid: 'master', iv: iv.toString('base64') };
  await bed.execute('object-add', { 'qom-type': 'secret', id: 's', ...rest });
  assert.equal(Buffer.from(bed.engine.graph.objects.secret('s')).toString(), 'the secret');
  const wrong = { ...rest, iv: Buffer.alloc(15).toString('base64') };
  const refusal = await bed.refusal('object-add', { 'qom-type': 'secret', id: 'w', ...wrong });
  assert.equal(refusal, 'IV should be 16 bytes in length not 15');
});

test('an object that is used is not deleted', async (t) => {
  const bed = new EngineBed(t);
  await bed.execute('object-add', { 'qom-type': 'throttle-group', id: 'g' });
  const release = bed.engine.graph.objects.find('g')?.use();
  assert.equal(await bed.refusal('object-del', { id: 'g' }), "object 'g' is in use, can not be deleted");
  release?.();
  await bed.execute('object-del', { id: 'g' });
});

test('the first rule that matches decides who may come in', async (t) => {
  const bed = new EngineBed(t);
  const rules = [
    { match: 'CN=mallory*', policy: 'deny', format: 'glob' },
    { match: 'CN=?.example.org', policy: 'allow', format: 'glob' },
    { match: 'CN=bob', policy: 'allow' },
  ];
  await bed.execute('object-add', { 'qom-type': 'authz-list', id: 'list', rules });
  writeFileSync(bed.path('rules.json'), JSON.stringify({ policy: 'deny', rules }));
  const file = { 'qom-type': 'authz-listfile', id: 'file', filename: bed.path('rules.json') };
  await bed.execute('object-add', file);
  await bed.execute('object-add', { 'qom-type': 'authz-simple', id: 'one', identity: 'CN=bob' });
  const who = [
    'CN=mallory',
    'CN=a.example.org',
    'CN=ab.example.org',
    'CN=aXexample.org',
    'CN=bob',
    'CN=bobby',
  ];
  const allowed = async (id: string): Promise<string[]> => {
    const object = bed.engine.graph.objects.find(id);
    assert.ok(object instanceof Authorization);
    const answers = await Promise.all(who.map(async (name) => object.isAllowed(name)));
    return who.filter((_, i) => answers[i]);
  };
  assert.deepEqual(await allowed('list'), ['CN=a.example.org', 'CN=bob']);
  assert.deepEqual(await allowed('file'), ['CN=a.example.org', 'CN=bob']);
  assert.deepEqual(await allowed('one'), ['CN=bob']);
  writeFileSync(bed.path('rules.json'), JSON.stringify({ policy: 'allow' }));
  assert.equal((await allowed('file')).length, who.length);
  // Nobody comes in while the rules cannot be read.
  writeFileSync(bed.path('rules.json'), '{');
  assert.deepEqual(await allowed('file'), []);
});

test('pre-shared keys are read from their file', async (t) => {
  const bed = new EngineBed(t);
  const dir = bed.path('psk');
  mkdirSync(dir);
  const credentials = { 'qom-type': 'tls-creds-psk', id: 'p', dir, endpoint: 'client' };
  const missing = `Unable to access credentials ${dir}/keys.psk: No such file or directory`;
  assert.equal(await bed.refusal('object-add', credentials), missing);
  writeFileSync(`${dir}/keys.psk`, 'alice:00ff\nqemu:0a0b\n');
  await bed.execute('object-add', credentials);
  const object = bed.engine.graph.objects.find('p');
  assert.ok(object instanceof TlsCredentials);
  assert.equal(object.material.sharedKeys?.get(object.userName)?.toString('hex'), '0a0b');
  assert.equal(object.endpoint, 'client');
  assert.equal(object.verifiesPeer, true);
});

test('limits that are not given stay as they are', async (t) => {
  const bed = new EngineBed(t);
  await bed.execute('object-add', { 'qom-type': 'throttle-group', id: 'g', limits: { 'iops-total': 10 } });
  const at = { path: '/objects/g', property: 'limits' };
  await bed.execute('qom-set', { ...at, value: { 'bps-read': 20 } });
  const limits = (await bed.execute('qom-get', at)) as { [name: string]: number };
  assert.deepEqual([limits['iops-total'], limits['bps-read'], limits['bps-read-max-length']], [10, 20, 1]);
  const conflict = 'bps/iops/max total values and read/write values cannot be used at the same time';
  assert.equal(await bed.refusal('qom-set', { ...at, value: { 'iops-read': 1 } }), conflict);
});

test("the guest's disk becomes a filter in front of it and is itself again, while the guest writes", async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A');
  await bed.image('small');
  await bed.execute('object-add', { 'qom-type': 'throttle-group', id: 'g' });
  await bed.execute('blockdev-add', {
    ...{ driver: 'throttle', 'node-name': 'filter', 'throttle-group': 'g', file: 'A' },
  });
  const drive = (value: string): JsonObject => ({
    path: '/machine/peripheral/virtio0',
    property: 'drive',
    value,
  });
  const writes: Promise<void>[] = [];
  for (const [i, node] of ['filter', 'A', 'filter', 'A'].entries()) {
    writes.push(bed.guest(`write -P ${i + 1} ${i}M 1M`));
    await bed.execute('qom-set', drive(node));
    assert.equal(bed.engine.devices.get('virtio0')?.backend.node.name, node);
  }
  await Promise.all(writes);
  for (const i of writes.keys()) await bed.guest(`read -P ${i + 1} ${i}M 1M`);
  // Another writer has it: nothing changes.
  await bed.execute('nbd-server-start', { addr: { type: 'unix', data: { path: bed.path('socket') } } });
  await bed.execute('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'small', writable: true });
  assert.match(await bed.refusal('qom-set', drive('small')), /conflict/i);
  assert.equal(bed.engine.devices.get('virtio0')?.backend.node.name, 'A');
  await bed.guest('write -P 9 0 4096');
});
