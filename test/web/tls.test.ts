import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { get } from 'node:https';
import { test } from 'node:test';
import { readTls } from '../../src/programs/web/tls-files.js';
import { CertificateFolders } from '../kit/certificates.js';
import { scratch } from '../kit/program.js';
import { WebBed } from './web-bed.js';

function certificates(folder: string): CertificateFolders {
  const folders = new CertificateFolders(folder);
  folders.authority('server');
  folders.certificate('server', 'server', '/CN=the server');
  for (const name of ['ann', 'ben']) {
    folders.trusting(name, 'server');
    folders.certificate(name, 'client', `/CN=${name}`, 'server');
  }
  folders.authority('stranger');
  folders.certificate('stranger', 'client', '/CN=ann');
  return folders;
}

test('over TLS, only clients with a certificate that is allowed come in', async (t) => {
  const folders = certificates(scratch(t));
  const web = await WebBed.start(t, {
    address: { type: 'inet', host: '0.0.0.0', port: 0 },
    tls: readTls(folders.path('server'), ['ann']),
  });
  assert.match(web.url.href, /^https:\/\/localhost:\d+\/\?token=/);
  const ask = (who: string | undefined, host = web.url.host): Promise<[number | undefined, string]> =>
    new Promise((resolve, reject) => {
      const shown = who === undefined ? {} : keysOf(folders, who);
      const ca = readFileSync(folders.path('server', 'ca-cert.pem'));
      const { search, port } = web.url;
      const options = { host: '127.0.0.1', port, path: `/${search}`, ca, ...shown, headers: { host } };
      // Which name is said is tried, too.
      get({ ...options, checkServerIdentity: () => undefined }, (response) => {
        response.resume();
        resolve([response.statusCode, String(response.headers['set-cookie'])]);
      }).on('error', reject);
    });
  await assert.rejects(ask(undefined));
  await assert.rejects(ask('stranger'));
  assert.equal((await ask('ben'))[0], 403);
  assert.equal((await ask('ann', `evil.example:${web.url.port}`))[0], 421);
  const [status, cookie] = await ask('ann');
  assert.equal(status, 303);
  assert.match(cookie, /SameSite=Strict; Path=\/; Secure/);
});

function keysOf(folders: CertificateFolders, who: string): { cert: Buffer; key: Buffer } {
  const read = (name: string): Buffer => readFileSync(folders.path(who, name));
  return { cert: read('client-cert.pem'), key: read('client-key.pem') };
}

test('beyond this machine nothing is served without TLS', async (t) => {
  for (const host of ['0.0.0.0', '::', '192.0.2.1', 'example.org'])
    await assert.rejects(
      WebBed.start(t, { address: { type: 'inet', host, port: 0 } }),
      /beyond this machine the page is only served with --tls-creds/,
      host,
    );
  assert.throws(() => readTls(undefined, ['ann']), /--tls-client needs --tls-creds/);
  assert.throws(() => readTls(scratch(t), undefined), /ca-cert\.pem cannot be read/);
});
