import t from 'tap'
import { openClusterFolder, replacedShardsOf } from '../../cli/cluster-folder.ts'

t.test('a disk of `holdfast up` that was replaced is named to its own node only', async t => {
  const { nodes } = await openClusterFolder(t.testdir(), 'password')
  const replaced = ['node-b-2', 'node-c-1']
  t.same(
    nodes.map(node => replacedShardsOf(node, nodes, replaced)),
    [[], ['node-b-2'], ['node-c-1']],
  )
  const [first] = nodes
  t.throws(() => replacedShardsOf(first!, nodes, ['node-d-1']), {
    code: 'CONFIG_INVALID',
    message: /node-d-1.*node-a-1/,
  })
})
