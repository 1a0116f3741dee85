import { BlockError } from '../base/error.js';
import { given } from '../base/given.js';
import { type MoveTarget, parseTarget } from '../attach/migration/target.js';
import type { CommandArguments } from '../schema/commands.js';
import type { MigrationAddress } from '../schema/migration.js';
import { socketAddress } from './exports.js';
import type { Parts } from './parts.js';

export type Migrating = Parts<'moves' | 'wholeMove'>;

/** Moves of the machine; a storage daemon has none. */
export function registerMigration(engine: Migrating & Parts<'command'>): void {
  const { moves, wholeMove } = engine;
  const { source, capabilities, parameters } = moves;
  engine.command('migrate', (args) => migrate(engine, args));
  engine.command('migrate-incoming', (args) => incoming(engine, args));
  engine.command('migrate-continue', ({ state }) => source.continue(state));
  engine.command('migrate_cancel', () => source.cancel());
  engine.command('migrate-set-capabilities', ({ capabilities: changes }) => {
    if (source.isUnderWay) throw new BlockError('busy', "There's a migration process in progress");
    capabilities.set(changes);
  });
  engine.command('query-migrate-capabilities', () => capabilities.list());
  engine.command('migrate-set-parameters', (changes) => parameters.set(changes));
  engine.command('query-migrate-parameters', () => given({ ...parameters.values }));
  engine.command('query-migrate', () => moves.info());
  engine.command('migrate-start-postcopy', () => source.startPostcopy());
  for (const [name, why] of POSTCOPY)
    engine.command(name, () => {
      throw new BlockError('unsupported', why);
    });
  // There is no network whose switches could be told.
  engine.command('announce-self', () => undefined);
  engine.command('x-query-move', (_, caller) => {
    const progress = caller.hasExtensions ? wholeMove.info() : undefined;
    return { ...moves.moveInfo(), ...(progress && { 'x-progress': progress }) };
  });
  engine.command('x-move', (args) => wholeMove.begin(args));
  engine.command('x-move-cancel', () => wholeMove.cancel());
  engine.command('x-move-claim', (by) => moves.claim(by));
  engine.command('x-move-release', async () => ({ word: await moves.release() }));
}

/** What there is for postcopy alone, in QEMU's words. */
const POSTCOPY = [
  ['migrate-recover', 'Migrate recover can only be run when postcopy is paused.'],
  ['migrate-pause', 'migrate-pause is currently only supported during postcopy-active state'],
] as const;

type Where = Pick<CommandArguments<'migrate'>, 'uri' | 'channels'>;

function migrate(engine: Migrating, args: CommandArguments<'migrate'>): void {
  checkWhere(args);
  engine.moves.migrate(() => targetOf(args), args.resume ?? false);
}

async function incoming(engine: Migrating, args: CommandArguments<'migrate-incoming'>): Promise<void> {
  checkWhere(args);
  await engine.moves.listen(() => {
    const target = targetOf(args);
    if (target) return target;
    throw new BlockError('invalid', `unknown migration protocol: ${args.uri}`);
  });
}

function checkWhere({ uri, channels }: Where): void {
  if (uri === undefined && channels === undefined)
    throw new BlockError('invalid', "Parameter 'uri' is missing");
  if (uri !== undefined && channels !== undefined)
    throw new BlockError(
      'invalid',
      "'uri' and 'channels' arguments are mutually exclusive; exactly one of the two should be present in 'migrate' qmp command ",
    );
  if (channels !== undefined && channels.length !== 1)
    throw new BlockError('invalid', "Channel list must have exactly one entry, of type 'main'");
}

/** Undefined for a protocol that is not known. Errors: invalid, in QEMU's words. */
function targetOf({ uri, channels }: Where): MoveTarget | undefined {
  const address = channels?.[0]?.addr;
  if (!address) return parseTarget(uri ?? '');
  return targetAt(address);
}

function targetAt(address: MigrationAddress): MoveTarget {
  if ('exec' in address) {
    const { args } = address.exec;
    if (!args[0]) throw new BlockError('invalid', "Parameter 'args' is missing a program");
    return { kind: 'command', argv: args };
  }
  if ('file' in address)
    return { kind: 'state-file', path: address.file.filename, offset: address.file.offset };
  const { socket } = address;
  if (socket.type === 'fd') return { kind: 'descriptor', name: socket.str };
  return { kind: 'socket', address: socketAddress(socket) };
}

/** -incoming; `defer` waits for migrate-incoming. Errors: invalid, in QEMU's words; those of where it comes from. */
export async function listenFor(engine: Migrating, uri: string): Promise<void> {
  if (uri === 'defer') return;
  await engine.moves.listen(() => {
    const target = parseTarget(uri);
    if (!target) throw new BlockError('invalid', `unknown migration protocol: ${uri}`);
    if (target.kind !== 'descriptor') return target;
    if (!/^\d+$/.test(String(target.name)))
      throw new BlockError('invalid', `Invalid file descriptor number '${target.name}'`);
    return { kind: 'descriptor', name: Number(target.name) };
  });
}
