@own-service
Feature: Engines that the service launches
  An engine's process may die or never come up. The operator sees what happened and why, the service
  starts it again, and clients are served meanwhile by what is left.

  Background:
    Given pool "served" that launches 2 engines
    And pool "hopeless" whose engine cannot start

  @OC-POOL-3001 @ORCH-3002
  Scenario: Ready after the preload, and not before
    Then "served" comes to show
      | ready            | true  |
      | replicas.0.state | Ready |
      | replicas.1.state | Ready |
    And "hopeless" comes to show
      | ready | false |
    When acme submits to "served"
      | task | max_tokens |
      | work | 4          |
    Then "work" has run to its end

  @OC-POOL-3003 @ORCH-2103
  Scenario: What does not come up says why, and is no trouble for the others
    Then "hopeless" comes to show
      | live               | true      |
      | ready              | false     |
      | last_error.code    | something |
      | last_error.message | something |
    When acme submits to "hopeless"
      | task  |
      | never |
    Then "never" is turned away with
      | code      | POOL_UNREADY |
      | retriable | true         |
    When acme submits to "served"
      | task | max_tokens |
      | work | 4          |
    Then "work" has run to its end

  @OC-POOL-3011
  Scenario: A process that was killed is started again, and its work goes on elsewhere
    Given the scraper has read the metrics
    When acme submits to "served"
      | task  | max_tokens |
      | story | 60         |
    And the process of the first engine of "served" is killed
    Then "served" comes to show
      | replicas.0.restarts | 1     |
      | replicas.0.state    | Ready |
    And "story" has run to its end
    And since then have grown
      | replica_restarts_total| 1 |
