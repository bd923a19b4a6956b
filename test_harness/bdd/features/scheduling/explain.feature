@own-service
Feature: Explanations
  Why did it wait, why was it refused? An operator can answer a user: every decision about a task is
  kept with the figures that it was taken from.

  Background:
    Given pool "single" with 1 engine of 1 slot and
      """
      queue: { capacity: 2, full_policy: shed-low-priority }
      preemption: { mode: "off" }
      """
    And pool "pair" with 2 engines of 1 slot
    And pool "hard" with 1 engine of 1 slot and
      """
      preemption: { mode: hard }
      """

  @ORCH-3091
  Scenario: A task that a free slot took at once
    When acme submits to "single"
      | task  |
      | quick |
    Then "quick" ends well
    And the explanation of "quick" says ended, with these decisions
      | decision   | reason    |
      | admitted   | free-slot |
      | dispatched | free-slot |
      | ended      | completed |
    And zeta gets no explanation of "quick"

  @ORCH-3091 @ORCH-3094
  Scenario: A task that waits for its turn
    Given all slots of "single" are taken
    When acme submits to "single"
      | task   | priority |
      | before | batch    |
      | later  | batch    |
    Then the explanation of "later" says waiting, with these decisions
      | decision | reason |
      | admitted | queued |
    And the explanation of "later" shows
      | queue_position | 1     |
      | priority       | batch |
    And the explanation of "later" compares what it got with what its weights promise
    And the summary of "later" says "Waits in pool single behind 1 task"

  @ORCH-3091
  Scenario: A task that was shed for a more urgent one
    Given all slots of "single" are taken
    When acme submits to "single"
      | task   | priority    |
      | calm   | batch       |
      | spare  | batch       |
      | urgent | interactive |
    Then the explanation of "spare" says ended, with these decisions
      | decision | reason            |
      | admitted | queued            |
      | evicted  | shed-low-priority |
    And in its decision evicted stands
      | waiting        | 2           |
      | queue_capacity | 2           |
      | for_priority   | interactive |

  @ORCH-3091
  Scenario: A task that was refused
    Given all slots of "single" are taken
    When acme submits to "single"
      | task   |
      | first  |
      | second |
      | third  |
    Then the explanation of "third" says refused, with these decisions
      | decision | reason     |
      | refused  | queue-full |
    And in its decision refused stands
      | waiting        | 2 |
      | queue_capacity | 2 |

  @ORCH-3091 @ORCH-3086
  Scenario: A task that made way for a more urgent one
    Given the engines of "hard" stop after 5 tokens of each task
    When acme submits to "hard"
      | task | priority | max_tokens | ctx  |
      | long | batch    | 400        | 2048 |
    And 5 tokens of "long" are read
    And acme submits to "hard"
      | task   | max_tokens | deadline_ms |
      | urgent | 2          | 3000        |
    Then "urgent" ends well
    When the engines of "hard" go on
    Then "long" ends well
    And the explanation of "long" says ended, with these decisions
      | decision   | reason    |
      | admitted   | free-slot |
      | dispatched | free-slot |
      | preempted  | urgent    |
      | resumed    | preempted |
      | ended      | completed |
    And in its decision preempted stands
      | tokens_out | 5 |

  @ORCH-3091 @ORCH-3201
  Scenario: A task whose engine died
    Given the engines of "pair" stop after 3 tokens of each task
    When acme submits to "pair"
      | task  |
      | moved |
    And "moved" runs on r0
    And engine r0 of "pair" dies
    And the engines of "pair" go on
    Then "moved" ends well
    And the explanation of "moved" says ended, with these decisions
      | decision   | reason      |
      | admitted   | free-slot   |
      | dispatched | free-slot   |
      | moved      | worker-lost |
      | resumed    | worker-lost |
      | ended      | completed   |
    And in its decision moved stands
      | from_replica_id | r0 |
    And the explanation of "moved" shows
      | replica_id | r1 |
