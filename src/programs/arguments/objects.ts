import { enumOf, required, struct } from '../../schema/types.js';
import { isJsonOption, parseKeyval } from './keyval.js';

/** QAPI's ObjectType: what QEMU's programs make for --object. */
const KNOWN = (
  'authz-list authz-listfile authz-pam authz-simple can-bus can-host-socketcan colo-compare cryptodev-backend ' +
  'cryptodev-backend-builtin cryptodev-backend-lkcf cryptodev-vhost-user dbus-vmstate filter-buffer filter-dump ' +
  'filter-mirror filter-redirector filter-replay filter-rewriter input-barrier input-linux iothread main-loop ' +
  'memory-backend-epc memory-backend-file memory-backend-memfd memory-backend-ram pef-guest pr-manager-helper qtest ' +
  'rng-builtin rng-egd rng-random secret secret_keyring sev-guest thread-context s390-pv-guest throttle-group ' +
  'tls-creds-anon tls-creds-psk tls-creds-x509 tls-cipher-suites x-remote-object x-vfio-user-server'
).split(' ');

const OBJECT = struct('ObjectOptions', { 'qom-type': required(enumOf('ObjectType', [], KNOWN)) });

/** What --object asks for; livedisk has none. Errors: always, in QEMU's words where QEMU refuses it too. */
export function makeObject(text: string): never {
  return OBJECT.parse(parseKeyval(text, 'qom-type'), '', isJsonOption(text) ? 'qmp' : 'keyval')['qom-type'];
}
