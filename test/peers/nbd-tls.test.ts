import assert from 'node:assert/strict';
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { Engine } from '../../src/monitor/engine.js';
import { allDrivers } from '../../src/drivers/index.js';
import { CertificateFolders } from '../kit/certificates.js';
import { freePort } from '../kit/free-port.js';
import { createRealHost } from '../../src/host/real.js';

const MiB = 1024 * 1024;

function without(...programs: string[]): string | false {
  const missing = programs.find((program) => spawnSync(program, ['--version']).error);
  return missing === undefined ? false : `${missing} is not installed`;
}

let folder = '';
const path = (...parts: string[]): string => join(folder, ...parts);
const peers = new Set<ChildProcess>();

before(() => {
  folder = mkdtempSync(join(tmpdir(), 'livedisk-tls-'));
  if (without('openssl') !== false) return;
  const folders = new CertificateFolders(folder);
  for (const dir of ['good', 'other']) {
    folders.authority(dir);
    folders.certificate(dir, 'server', '/C=GB/O=Servers/CN=localhost');
    folders.certificate(dir, 'client', '/C=GB/O=Clients, all/CN=a client');
  }
  mkdirSync(path('psk'));
  writeFileSync(path('psk', 'keys.psk'), `qemu:${'ab'.repeat(16)}\nother:${'cd'.repeat(16)}\n`);
});

after(() => {
  for (const peer of peers) peer.kill('SIGKILL');
  rmSync(folder, { recursive: true, force: true });
});

const x509 = (dir: string, endpoint: string, more: object = {}): object => ({
  'qom-type': 'tls-creds-x509',
  id: 'tls',
  dir: path(dir),
  endpoint,
  ...more,
});

/** qemu-nbd with these objects, on a port; kept until the end of the tests. */
async function qemuNbd(...args: string[]): Promise<string> {
  const port = String(await freePort());
  const pidFile = path(`${port}.pid`);
  writeFileSync(path('theirs.raw'), Buffer.alloc(MiB, 5));
  const more = ['-t', '-f', 'raw', '-b', '127.0.0.1', '-p', port, '--pid-file', pidFile, 'theirs.raw'];
  const child = spawn('qemu-nbd', [...args, '--tls-creds', 'tls', ...more], {
    cwd: folder,
    stdio: 'inherit',
  });
  peers.add(child);
  while (!existsSync(pidFile)) {
    assert.equal(child.exitCode, null, 'qemu-nbd serves');
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  return port;
}

test(
  'our client against qemu-nbd, with certificates and with keys',
  { skip: without('qemu-nbd', 'openssl') },
  async () => {
    const engine = new Engine({ host: createRealHost(), drivers: allDrivers, kind: 'storage-daemon' });
    const execute = (command: string, args: object): Promise<unknown> =>
      engine.hub.execute(command, args as never);
    const add = async (port: string, name: string, more: object = { 'tls-creds': 'tls' }): Promise<void> => {
      const server = { type: 'inet', host: '127.0.0.1', port };
      await execute('blockdev-add', { driver: 'nbd', 'node-name': name, server, ...more });
      await execute('blockdev-del', { 'node-name': name });
    };
    const certificates = await qemuNbd(
      '--object',
      `tls-creds-x509,id=tls,endpoint=server,dir=${path('good')}`,
    );
    await execute('object-add', x509('good', 'client'));
    await execute('object-add', { ...x509('other', 'client'), id: 'other' });
    await add(certificates, 'a');
    await assert.rejects(
      add(certificates, 'b', { 'tls-creds': 'other' }),
      /The certificate hasn't got a known issuer/,
    );
    await assert.rejects(add(certificates, 'c', {}), /TLS negotiation required before option/);
    const misnamed = { 'tls-creds': 'tls', 'tls-hostname': 'elsewhere' };
    await assert.rejects(
      add(certificates, 'd', misnamed),
      /Certificate does not match the hostname elsewhere/,
    );
    await assert.rejects(
      add(certificates, 'e', { 'tls-creds': 'nope' }),
      /No TLS credentials with id 'nope'/,
    );
    const keys = await qemuNbd('--object', `tls-creds-psk,id=tls,endpoint=server,dir=${path('psk')}`);
    await execute('object-add', {
      'qom-type': 'tls-creds-psk',
      id: 'psk',
      dir: path('psk'),
      endpoint: 'client',
    });
    await add(keys, 'f', { 'tls-creds': 'psk' });
    await engine.close();
  },
);
