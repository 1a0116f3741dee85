import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { allDrivers } from '../../src/drivers/index.js';
import { createRealHost } from '../../src/host/real.js';
import { imgMain } from '../../src/programs/img/main.js';
import { CertificateFolders } from '../kit/certificates.js';
import { FileServer } from '../kit/file-server.js';
import { type ToolAnswer, toolAnswer } from '../kit/tool-answer.js';

const EXTRA = 'NODE_EXTRA_CA_CERTS';

test('a web server is believed whose certificate verifies, or when nobody is to look', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'livedisk-https-'));
  const certificates = new CertificateFolders(folder);
  for (const name of ['known', 'other']) certificates.authority(name);
  certificates.certificate('known', 'server', '/CN=server');
  writeFileSync(join(folder, 'image'), Buffer.alloc(8192, 1));
  const file = (name: string): Buffer => readFileSync(certificates.path('known', name));
  const server = await FileServer.start(folder, {
    key: file('server-key.pem'),
    cert: file('server-cert.pem'),
  });
  const before = process.env[EXTRA];
  t.after(async () => {
    if (before === undefined) delete process.env[EXTRA];
    else process.env[EXTRA] = before;
    await server.close();
    rmSync(folder, { recursive: true });
  });
  /** Whom to trust, the server's name and what else is said of it. */
  const info = async (trusted: string, host = 'localhost', more = ''): Promise<ToolAnswer> => {
    if (trusted === '') delete process.env[EXTRA];
    else process.env[EXTRA] = trusted;
    const options = `driver=raw,file.driver=https,file.url=https://${host}:${server.port}/f/image${more}`;
    const words = ['info', '--image-opts', options];
    return toolAnswer((out) => imgMain(words, out, createRealHost(), allDrivers));
  };
  const authority = (name: string): string => certificates.path(name, 'ca-cert.pem');
  const shown = await info(authority('known'));
  assert.match(shown.stdout, /virtual size: 8 KiB/, shown.stderr);
  for (const [trusted, host, why] of [
    ['', 'localhost', /unable to verify|self.signed|certificate/],
    [authority('other'), 'localhost', /unable to verify|self.signed|certificate/],
    [certificates.path('none'), 'localhost', /NODE_EXTRA_CA_CERTS: cannot read/],
  ] as const) {
    const refused = await info(trusted, host);
    assert.equal(refused.code, 1, `${trusted} ${host}`);
    assert.match(refused.stderr, why);
  }
  assert.match((await info('', 'localhost', ',file.sslverify=off')).stdout, /virtual size: 8 KiB/);
});
