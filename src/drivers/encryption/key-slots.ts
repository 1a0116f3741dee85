import { BlockError } from '../../base/error.js';
import type { LuksAmendment } from '../../schema/encryption-options.js';
import { SLOT_COUNT } from './luks-header.js';
import type { LuksVolume } from './luks-volume.js';

const DEFAULT_TIME_MS = 2000;

/** Secrets by their ids. */
export type SecretOf = (id: string) => Uint8Array;

/** What a change of key slots is made with. */
export interface KeySlotChange {
  readonly amendment: LuksAmendment;
  /** Also what may make all data unreadable. */
  readonly isForced: boolean;
  readonly secretOf: SecretOf;
  /** The secret that the image was opened with. */
  readonly openedWith: string | undefined;
}

/** Changes key slots as asked; durable on return. Errors: invalid, permission; in QEMU's words. */
export async function amendKeySlots(volume: LuksVolume, change: KeySlotChange): Promise<void> {
  return change.amendment.state === 'active' ? activate(volume, change) : erase(volume, change);
}

async function activate(volume: LuksVolume, change: KeySlotChange): Promise<void> {
  const { amendment, isForced, secretOf, openedWith } = change;
  const { 'new-secret': newSecret, keyslot } = amendment;
  if (newSecret === undefined) throw invalid("'new-secret' is required to activate a keyslot");
  if (amendment['old-secret'] !== undefined)
    throw invalid("'old-secret' must not be given when activating keyslots");
  const slot = keyslot ?? volume.header.slots.findIndex(({ isActive }) => !isActive);
  if (keyslot !== undefined) checkNumber(keyslot);
  else if (slot < 0) throw invalid("Can't add a keyslot - all keyslots are in use");
  const isActive = volume.header.slots[slot]?.isActive === true;
  if (isActive && !isForced)
    throw invalid(`Refusing to overwrite active keyslot ${slot} - please erase it first`);
  const opening = amendment.secret ?? openedWith;
  if (opening === undefined) throw invalid("Parameter 'key-secret' is required for cipher");
  const key = await volume.unlock(secretOf(opening));
  await volume.fillSlot(slot, key, secretOf(newSecret), amendment['iter-time'] ?? DEFAULT_TIME_MS);
}

async function erase(volume: LuksVolume, change: KeySlotChange): Promise<void> {
  const { amendment, isForced, secretOf } = change;
  const { keyslot, 'old-secret': oldSecret } = amendment;
  if (amendment['new-secret'] !== undefined)
    throw invalid("'new-secret' must not be given when erasing keyslots");
  if (amendment['iter-time'] !== undefined)
    throw invalid("'iter-time' must not be given when erasing keyslots");
  const password = oldSecret === undefined ? undefined : secretOf(oldSecret);
  const active = [...volume.header.slots.keys()].filter((slot) => volume.header.slots[slot]?.isActive);
  if (keyslot !== undefined) {
    checkNumber(keyslot);
    return eraseOne(volume, keyslot, { password, active, isForced });
  }
  if (password === undefined)
    throw invalid(
      'To erase keyslot(s), either explicit keyslot index or the password currently contained in them must be given',
    );
  const matching: number[] = [];
  for (const slot of active) if (await volume.holds(slot, password)) matching.push(slot);
  if (matching.length === 0) throw invalid('No keyslots match given (old) password for erase operation');
  if (matching.length === active.length && !isForced)
    throw invalid(
      'All the active keyslots match the (old) password that was given and erasing them will erase all the data ' +
        'in the image irreversibly - refusing operation',
    );
  for (const slot of matching) await volume.eraseSlot(slot);
}

async function eraseOne(
  volume: LuksVolume,
  slot: number,
  given: { password: Uint8Array | undefined; active: readonly number[]; isForced: boolean },
): Promise<void> {
  const { password, active, isForced } = given;
  const isActive = active.includes(slot);
  if (password !== undefined && !(await volume.holds(slot, password)))
    throw invalid(`Given keyslot ${slot} doesn't contain the given old password for erase operation`);
  if (!isForced && !isActive) throw invalid(`Given keyslot ${slot} is already erased (inactive) `);
  if (!isForced && active.length === 1)
    throw invalid(
      `Attempt to erase the only active keyslot ${slot} which will erase all the data in the image irreversibly ` +
        '- refusing operation',
    );
  await volume.eraseSlot(slot);
}

function checkNumber(slot: number): void {
  if (slot < 0 || slot >= SLOT_COUNT)
    throw invalid(`Invalid keyslot ${slot} specified, must be between 0 and ${SLOT_COUNT - 1}`);
}

function invalid(message: string): BlockError {
  return new BlockError('invalid', message, { errno: 'EINVAL' });
}
