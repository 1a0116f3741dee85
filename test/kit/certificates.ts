import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { copyFileSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

/** Certificates for tests, made by openssl, in folders as tls-creds-x509 wants them. */
export class CertificateFolders {
  readonly #folder: string;

  constructor(folder: string) {
    this.#folder = folder;
  }

  path(...parts: string[]): string {
    return join(this.#folder, ...parts);
  }

  /** A folder with an authority of its own. */
  authority(dir: string): void {
    mkdirSync(this.path(dir));
    const uses = ['basicConstraints=critical,CA:true', 'keyUsage=critical,keyCertSign,cRLSign'];
    const files = ['-keyout', this.path(dir, 'ca-key.pem'), '-out', this.path(dir, 'ca-cert.pem')];
    const more = ['-days', '2', '-subj', '/CN=the authority', ...uses.flatMap((use) => ['-addext', use])];
    openssl('req', '-x509', '-newkey', 'rsa:2048', '-nodes', ...files, ...more);
  }

  /** A folder that trusts an authority of another one, and has no certificate yet. */
  trusting(dir: string, authority: string): void {
    mkdirSync(this.path(dir));
    copyFileSync(this.path(authority, 'ca-cert.pem'), this.path(dir, 'ca-cert.pem'));
  }

  /** A certificate in `dir`. */
  certificate(dir: string, end: 'server' | 'client', subject: string, authority = dir): void {
    const names = 'subjectAltName=DNS:localhost,IP:127.0.0.1';
    const ext = this.path(dir, 'ext');
    writeFileSync(ext, `${names}\nextendedKeyUsage=${end}Auth\nbasicConstraints=critical,CA:false\n`);
    const [key, request] = [this.path(dir, `${end}-key.pem`), this.path(dir, 'request.pem')];
    const wanted = ['-keyout', key, '-out', request, '-subj', subject];
    openssl('req', '-new', '-utf8', '-multivalue-rdn', '-newkey', 'rsa:2048', '-nodes', ...wanted);
    const [ca, caKey] = [this.path(authority, 'ca-cert.pem'), this.path(authority, 'ca-key.pem')];
    const from = ['-CA', ca, '-CAkey', caKey, '-CAcreateserial', '-extfile', ext];
    const out = this.path(dir, `${end}-cert.pem`);
    openssl('x509', '-req', '-days', '2', '-in', request, ...from, '-out', out);
  }
}

function openssl(...args: string[]): void {
  const { status, stderr } = spawnSync('openssl', args, { encoding: 'utf8' });
  assert.equal(status, 0, stderr);
}
