@own-service
Feature: Which policy it was
  Operators choose what happens when there is no room; whoever loses by it is told which policy
  decided, and the operator sees how often it did.

  Background:
    Given pool "strict" with 1 engine of 1 slot and
      """
      queue: { capacity: 1, full_policy: reject }
      """
    And pool "fresh" with 1 engine of 1 slot and
      """
      queue: { capacity: 1, full_policy: drop-lru }
      """
    And pool "hurried" with 1 engine of 1 slot and
      """
      preemption: { mode: hard }
      """

  @ORCH-2007 @OC-CTRL-2011
  Scenario: Refused, and told by which policy and when to come back
    Given the scraper has read the metrics
    And all slots of "strict" are taken
    When acme submits to "strict"
      | task  |
      | one   |
      | other |
    Then "one" is admitted
    And the answer is 429 with
      | code           | ADMISSION_REJECT |
      | policy_label   | reject           |
      | pool_id        | strict           |
      | engine         | llamacpp         |
      | retry_after_ms | something        |
    And the answer carries
      | Retry-After  | something |
      | X-Backoff-Ms | something |
    And since then have grown
      | admission_backpressure_events_total{policy=reject} | 1 |
    When the engines of "strict" go on
    And "other" is sent again until it is admitted
    Then "one" and "other" end well

  @ORCH-3005 @OC-CORE-1002
  Scenario: Dropped, and the operator can say why
    Given the scraper has read the metrics
    And all slots of "fresh" are taken
    When acme submits to "fresh"
      | task |
      | old  |
      | new  |
    Then the stream of "old" ends with
      | event        | error               |
      | code         | QUEUE_FULL_DROP_LRU |
      | policy_label | drop-lru            |
    And the explanation of "old" says ended, with these decisions
      | decision | reason   |
      | admitted | queued   |
      | evicted  | drop-lru |
    And since then have grown
      | tasks_rejected_total | 1 |
    When the engines of "fresh" go on
    Then "new" ends well

  @ORCH-3086 @ORCH-3087
  Scenario: Interrupted for somebody more urgent, and counted
    Given the scraper has read the metrics
    And the engines of "hurried" stop after 5 tokens of each task
    When acme submits to "hurried"
      | task   | priority | max_tokens | ctx  | deadline_ms |
      | report | batch    | 400        | 2048 | 100000      |
    And 5 tokens of "report" are read
    And acme submits to "hurried"
      | task     | max_tokens | deadline_ms |
      | question | 2          | 3000        |
    Then "question" ends well
    When the engines of "hurried" go on
    Then "report" ends well
    And since then have grown
      | preemptions_total{mode=hard} | 1 |
      | resumptions_total            | 1 |

  @ORCH-3005 @ORCH-3031
  Scenario: The operator chooses another policy, and the next one in a full queue meets it
    Given all slots of "strict" are taken
    When acme submits to "strict"
      | task |
      | one  |
    And the configuration file says of "strict"
      """
      queue: { capacity: 1, full_policy: drop-lru }
      """
    And the operator posts to /v1/config/reload
      """
      {}
      """
    Then the answer is 200 with
      | applied | true |
    When acme submits to "strict"
      | task |
      | two  |
    Then "two" is admitted
    And the stream of "one" ends with
      | policy_label | drop-lru |
    When the engines of "strict" go on
    Then "two" ends well
