import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, renameSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { test } from 'node:test';
import { Daemon, PROGRAM, run, scratch, skipWithout } from './daemon.js';

/** An update puts other files in the place of a program's, whose process goes on until it is taken over, or for good. */

test('a daemon whose program is replaced inflates, speaks TLS, and ends well', async (t) => {
  if (skipWithout(t, 'qemu-img', 'qemu-io')) return;
  const folder = scratch(t);
  const installed = join(folder, 'installed');
  cpSync(dirname(PROGRAM), installed, { recursive: true });
  symlinkSync(resolve(import.meta.dirname, '../../node_modules'), join(folder, 'node_modules'));
  mkdirSync(join(folder, 'psk'));
  writeFileSync(join(folder, 'psk/keys.psk'), `qemu:${'ab'.repeat(16)}\n`);
  run(folder, 'qemu-img', 'create', '-q', '-f', 'raw', 'raw', '8M');
  run(folder, 'qemu-io', '-f', 'raw', '-c', 'write -q -P 7 0 8M', 'raw');
  run(folder, 'qemu-img', 'convert', '-c', '-f', 'raw', '-O', 'qcow2', 'raw', 'disk.qcow2');
  const daemon = await Daemon.start(t, folder, [
    ...[process.execPath, join(installed, 'livedisk.cjs'), 'run', '-nodefaults', '-monitor', 'none'],
    ...['-blockdev', 'driver=qcow2,node-name=disk,file.driver=file,file.filename=disk.qcow2'],
    ...['-object', 'tls-creds-psk,id=tls,dir=psk,endpoint=server'],
    ...['-nbd-server', 'addr.type=unix,addr.path=nbd,tls-creds=tls'],
    ...['-export', 'type=nbd,id=e,node-name=disk,name=disk', '-qmp', 'unix:qmp.sock,server=on,wait=off'],
  ]);
  await daemon.execute('query-status');
  renameSync(installed, join(folder, 'before'));
  const image = 'driver=raw,file.driver=nbd,file.server.type=unix,file.server.path=nbd,file.export=disk';
  const { status, stdout, stderr } = spawnSync(
    'qemu-io',
    [
      ...['--object', 'tls-creds-psk,id=tls,dir=psk,endpoint=client,username=qemu'],
      ...['-r', '-c', 'read -P 7 0 8M', '--image-opts', `${image},file.tls-creds=tls`],
    ],
    { cwd: folder, encoding: 'utf8' },
  );
  assert.equal(status, 0, `${stdout}${stderr}${daemon.output}`);
  assert.doesNotMatch(stdout, /failed/);
  assert.equal(await daemon.quit(), 0, daemon.output);
});
