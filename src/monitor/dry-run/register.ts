import type { CommandArguments } from '../../schema/commands.js';
import type { DRY_RUN_RETURNS } from '../../schema/dry-run.js';
import type { Parts } from '../parts.js';
import { dryBackup, dryCommit, type DryRunAnswer, dryMirror, dryStream } from './jobs.js';
import { dryDriveBackup, dryDriveMirror, drySnapshot, drySnapshotSync } from './new-images.js';

type Engine = Parts<'registry' | 'graph' | 'jobs' | 'opener' | 'baseProtection' | 'print'>;

type Asked = { readonly 'x-dry-run'?: boolean };

/** Commands that tell what they would do, where they are asked to. */
export function registerDryRuns(engine: Engine): void {
  const divert = <N extends keyof typeof DRY_RUN_RETURNS>(
    name: N,
    run: (engine: Engine, args: CommandArguments<N>) => Promise<DryRunAnswer>,
  ): void =>
    engine.registry.divert<CommandArguments<N> & Asked>(
      name,
      (args) => args['x-dry-run'] === true,
      (args) => run(engine, args),
    );
  divert('block-commit', dryCommit);
  divert('block-stream', dryStream);
  divert('blockdev-backup', dryBackup);
  divert('blockdev-mirror', dryMirror);
  divert('blockdev-snapshot', drySnapshot);
  divert('blockdev-snapshot-sync', drySnapshotSync);
  divert('drive-backup', dryDriveBackup);
  divert('drive-mirror', dryDriveMirror);
}
