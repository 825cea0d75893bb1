import t from 'tap'
import { explore, type Variant } from './collection-model.ts'

const whole: Variant = { shards: 2, owners: 2, quorum: 2, uploaders: 2, generations: 3, sweeps: false }

t.test('I10, I11, I12: no step of garbage collection takes bytes from whoever was told they are stored', t => {
  const variants = [
    whole,
    { ...whole, shards: 3, owners: 3, generations: 2 },
    // A shard that is told nothing, because it is no owner, and the sweep that takes its copies.
    { ...whole, shards: 3, generations: 2 },
    { ...whole, sweeps: true },
  ]
  for (const variant of variants) {
    const { states, counterexample } = explore(variant)
    t.comment(`${variant.shards} shards, ${variant.owners} owners: ${states} states`)
    t.same(counterexample, undefined)
    t.ok(states > 1_000, 'the model goes somewhere')
  }
  t.end()
})

t.test('each part of the protocol is needed: without it the model finds a way to lose bytes', t => {
  const parts = [
    'hold and second look',
    'generation in deletions',
    'state in commits',
    'new generation for purging',
  ] as const
  for (const without of parts) {
    const { counterexample } = explore({ ...whole, without })
    t.ok(counterexample !== undefined, without)
    t.comment(`without ${without}, ${counterexample?.length} steps: ${counterexample?.join('; ')}`)
  }
  t.end()
})

t.test('what verifies copies guards against lost disks (I24), not against the collector', t => {
  for (const without of ['touch of the shards', 'generation in commits'] as const) {
    t.same(explore({ ...whole, without }).counterexample, undefined, without)
  }
  t.end()
})
