import { BlockError } from '../../base/error.js';
import type { HostRandom } from '../../host/host.js';
import type { MoveChannel } from '../../wire/migration/channel.js';
import { sha256Hex } from '../../wire/migration/digest.js';
import type { MachineState } from './machine-state.js';

const WORD_BYTES = 16;

/** The words of one move, by which it is decided who has the machine; each is random, and known by its SHA-256 before. */
export class MoveWords {
  readonly session: string;
  /** Whoever hears it as the destination has the machine. */
  readonly word: string;
  /** SHA-256 of the word by which the destination says that it will never have the machine; empty: not known yet. */
  backDigest = '';

  constructor(random: HostRandom) {
    this.session = random.bytes(WORD_BYTES).toString('hex');
    this.word = random.bytes(WORD_BYTES).toString('hex');
  }

  /** What the first message says of them. */
  get hello(): { session: string; word: string } {
    return { session: this.session, word: sha256Hex(Buffer.from(this.word, 'hex')) };
  }

  isBackWord(word: string): boolean {
    return this.backDigest !== '' && sha256Hex(Buffer.from(word, 'hex')) === this.backDigest;
  }
}

/**
 * Asks a destination that was told the word who has the machine, and tells it once more where it waits for it. `isDecided`
 * is asked when it has answered; undefined: it was, by others. Errors: not-found; those of the channel.
 */
export async function askForOwner(
  channel: MoveChannel,
  words: MoveWords,
  machine: MachineState['identity'],
  isDecided: () => boolean,
): Promise<'here' | 'there' | undefined> {
  await channel.open();
  await channel.send('hello', { ...words.hello, again: true, machine });
  const { body } = await channel.expect(['known']);
  if (isDecided()) return undefined;
  if (body.state === 'taken') {
    await channel.send('go', { word: words.word });
    await channel.expect(['owned']);
  } else if (body.state === 'released' && words.isBackWord(body.word ?? '')) return 'here';
  else if (body.state !== 'owned')
    throw new BlockError('not-found', 'the destination does not know of this move');
  if (isDecided()) return undefined;
  await channel.send('bye', {}).catch(() => undefined);
  return 'there';
}
