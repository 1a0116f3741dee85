import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { createRealHost } from '../../src/host/real.js';
import { allDrivers } from '../../src/drivers/index.js';
import { TestBed } from '../kit/test-disk.js';
import { startSshServer, withoutSsh } from './ssh-server.js';
import { scratch } from './daemon.js';
import { ToolPair } from './tool-pair.js';

/** Files of an OpenSSH server, asked of QEMU's ssh driver and of ours. */
const missing = withoutSsh();
const skip = missing ?? false;

test('files of a server are told of, made, read and written alike', { skip }, async (context) => {
  const folder = scratch(context);
  const pair = new ToolPair(context, folder);
  const { where } = await startSshServer(context, `${folder}/ssh`);
  pair.prepare(
    'qemu-img create -q -f raw a.raw 1M',
    'qemu-io -f raw -c "write -P 7 0 300k" a.raw >/dev/null',
    'qemu-img create -q -f qcow2 -b a.raw -F raw over.q',
    'head -c 700 a.raw >odd',
  );
  // Each side has a folder of its own on the server; what is printed must not say which.
  const own = (text: string): string =>
    text.replaceAll(`${folder}/ours`, 'F').replaceAll(`${folder}/theirs`, 'F');
  const key = (type: string): string => {
    const done = spawnSync('ssh-keygen', ['-l', '-E', type, '-f', `${folder}/ssh/host.pub`], {
      encoding: 'utf8',
    });
    const [, digest = ''] = /^\d+ [^:]*:(\S+)/.exec(done.stdout) ?? [];
    return type === 'md5' ? digest : Buffer.from(digest, 'base64').toString('hex');
  };
  const alike = (line: string): Promise<void> =>
    pair.alike(line.replaceAll('%', `ssh://${where}${folder}/{SIDE}`), own);
  const no = '?host_key_check=no';
  for (const line of [
    `img info %/a.raw`,
    `img info %/a.raw${no}`,
    `img info --output=json %/a.raw${no}`,
    `img info %/odd${no}`,
    `img info %/nothing${no}`,
    `img info ssh://127.0.0.1:1/x${no}`,
    `img info ssh://nowhere.invalid/x${no}`,
    `img info ssh://nobody-there@${where.replace(/^.*@/, '')}/x${no}`,
    `img info ssh://h`,
    `img info ssh:x`,
    `img info ssh://h/x?host_key_check=x`,
    ...['md5', 'sha1', 'sha256'].flatMap((type) => [
      `img info %/a.raw?host_key_check=${type}:${key(type)}`,
      `img info %/a.raw?host_key_check=${type}:00:11`,
    ]),
    `img create -f qcow2 %/new.q${no} 1M`,
    `img create -f raw %/new.raw${no} 1M`,
    `img create -f raw %/nowhere/new.raw${no} 1M`,
    `io -f raw -c 'write -P 5 0 64k' -c flush -c 'read -P 5 0 64k' -c 'write -z 4k 4k' -c 'truncate 2M' -c 'truncate 1M' %/new.raw${no}`,
    `img resize -f raw %/new.raw${no} 3M`,
    `img convert -O qcow2 %/a.raw${no} %/copy.q${no}`,
    `img compare %/a.raw${no} %/copy.q${no}`,
    `img check %/copy.q${no}`,
    `img map --output=json %/a.raw${no}`,
    `img convert -O raw %/over.q${no} flat`,
    `img snapshot -c s %/new.q${no}`,
    `img commit %/over.q`,
  ])
    await alike(line);
  for (const name of ['new.raw', 'copy.q'])
    assert.equal(pair.shell('ours', `qemu-img compare ${name} ../theirs/${name}`), 'Images are identical.\n');
});

test('a server that is killed fails requests, and nothing waits', { skip }, async (context) => {
  const folder = scratch(context);
  const { where, pid } = await startSshServer(context, `${folder}/ssh`);
  const bed = new TestBed(createRealHost(), allDrivers, folder);
  const lines: string[] = [];
  bed.graph.onDriverLine = (line) => void lines.push(line);
  const path = `${folder}/ssh/config`;
  const [user = '', host = '', port = ''] = where.split(/[@:]/);
  const options = { driver: 'ssh', server: { host, port }, user, path, 'host-key-check': { mode: 'none' } };
  const disk = await bed.open(options, { readOnly: true });
  const content = readFileSync(path);
  assert.deepEqual((await disk.read(0, disk.lengthBytes)).subarray(0, content.length), content);
  // The end of this one connection's server.
  const { status } = spawnSync('sh', ['-c', `kill -9 $(pgrep -P ${pid})`]);
  assert.equal(status, 0);
  await assert.rejects(disk.read(0, 512), { errno: 'EIO' });
  assert.match(lines.join('\n'), /^ssh: /);
  await disk.close();
});
